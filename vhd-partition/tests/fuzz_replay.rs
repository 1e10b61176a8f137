//! The fuzz target of partition tables, for a bounded time.
#![forbid(unsafe_code)]

#[allow(unreachable_pub, reason = "a part of another package")]
#[path = "../../fuzz/src/partition_table.rs"]
mod partition_table;
#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[test]
fn partition_tables() {
    replay::replay("partition_table", 20000, partition_table::partition_table);
}

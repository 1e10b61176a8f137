//! What the fuzz targets do with their input. The tests of the workspace include the same files.

pub mod change_image;
pub mod delta_import;
pub mod file_system;
pub mod files;
pub mod lab;
pub mod locators;
pub mod nbd;
pub mod nbd_client;
pub mod nbd_uri;
pub mod open_image;
pub mod partition_table;
pub mod probe;
pub mod qcow2;
pub mod records;
pub mod sparse_disk;
pub mod vhdx;

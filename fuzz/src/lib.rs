//! What the fuzz targets do with their input. The tests of the workspace include the same files.

pub mod file_system;
pub mod nbd;
pub mod nbd_client;
pub mod nbd_uri;
pub mod open_image;
pub mod partition_table;

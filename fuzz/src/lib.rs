//! What the fuzz targets do with their input. The tests of the workspace include the same files.

pub mod nbd;
pub mod open_image;

//! Test tools for the workspace.
#![forbid(unsafe_code)]

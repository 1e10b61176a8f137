//! `--ignore-children`: changing an image that others rely on.

use clap::Args;

use crate::codes::Kind;
use crate::failure::Failure;
use vhd_core::ErrorKind;

/// Whether those who rely on an image stand in the way.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ChildrenArgs {
    /// Do it although other images or snapshots rely on the image, or although that cannot be known: what they read changes
    #[arg(long)]
    pub(crate) ignore_children: bool,
}

/// A refusal that names the option by which it is overridden.
pub(crate) fn explain(error: impl Into<Failure>) -> Failure {
    let failure: Failure = error.into();
    match failure.kind() {
        Some(kind @ Kind::Library(ErrorKind::HasChildren)) => Failure::new(
            kind,
            format!(
                "{}; --ignore-children does it nevertheless, and changes what they read",
                failure.message()
            ),
        ),
        _ => failure,
    }
}

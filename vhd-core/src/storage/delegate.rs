//! A way to change one habit of a file and keep the others.

/// Implements the named [`StorageFile`](super::StorageFile) methods by calling the same ones of a field.
macro_rules! delegate_to {
    ($field:tt: $($method:ident($($arg:ident: $type:ty),*) -> $result:ty),* $(,)?) => {
        $(fn $method(&self, $($arg: $type),*) -> $result {
            self.$field.$method($($arg),*)
        })*
    };
}

pub(super) use delegate_to;

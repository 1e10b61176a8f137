//! Any text as the URI of an export.

use vhd_nbd::client::NbdUri;

/// A text is a URI or it is not; what is one says the same when it is written out.
pub fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(uri) = text.parse::<NbdUri>() else {
        return;
    };
    assert!(NbdUri::is_uri(&text), "{text:?} is taken and not known as a URI");
    let written = uri.to_string();
    assert!(NbdUri::is_uri(&written), "{written:?}");
    assert_eq!(
        written.parse::<NbdUri>().as_ref(),
        Ok(&uri),
        "{text:?} is written {written:?}"
    );
}

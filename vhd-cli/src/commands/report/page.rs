//! The document: one HTML file without scripts, pictures or fonts from elsewhere. Every name in it comes from strangers.

use std::fmt::{self, Display, Write as _};

use jiff::Timestamp;

use super::evidence::{Evidence, ImageEvidence};
use super::{sign, svg};
use crate::diagnosis::Diagnosis;
use crate::human;
use crate::output::path_text;

/// Nothing is loaded and nothing runs, whatever a name manages to say.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

const STYLE: &str = "\
body{font:15px/1.5 sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#1b1f24}\
h1{font-size:1.6em}h2{font-size:1.2em;border-bottom:1px solid #ccc;margin-top:2em}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.25em .8em .25em 0;border-bottom:1px solid #eee}\
code,pre,.digest,.tree text{font-family:monospace;font-size:13px}.digest,td{overflow-wrap:anywhere}pre{background:#f5f5f5;padding:1em;white-space:pre-wrap;overflow-wrap:anywhere}\
td.code,td.severity{white-space:nowrap}td.name{min-width:9em}div.scroll{overflow-x:auto}.tree path{fill:none;stroke:#888}.hole{fill:#eee;background:#eee}\
.legend span{display:inline-block;width:1em;height:1em;vertical-align:middle;margin-left:.8em}\
circle{fill:#2e8b57}circle.note{fill:#2e8b57}circle.corrupt,circle.parent,circle.changed{fill:#c0392b}circle.failed,circle.locked,circle.refused{fill:#777}circle.repairable,circle.leak{fill:#d9a400}\
td.corrupt,td.parent,td.changed{color:#c0392b;font-weight:bold}td.repairable,td.leak{color:#8a6800;font-weight:bold}";

/// A text as it can stand in an element or in a quoted attribute. What does not print, or reorders text, is shown by number.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in human::visible(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// The document.
pub(super) fn page(diagnosis: &Diagnosis, evidence: &Evidence) -> String {
    let mut page = Page(String::new());
    page.head(evidence);
    page.summary(diagnosis, evidence);
    page.section("Trees", |page| {
        page.raw("<div class=\"scroll\">\n");
        page.raw(&svg::trees(diagnosis));
        page.raw("</div>\n");
    });
    page.findings(diagnosis);
    page.commands(diagnosis);
    page.images(evidence);
    page.maps(evidence);
    page.log(evidence);
    page.raw("</body>\n</html>\n");
    page.0
}

struct Page(String);

impl Page {
    fn raw(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a string takes everything");
    }

    fn section(&mut self, title: &str, content: impl FnOnce(&mut Self)) {
        self.write(format_args!("<h2>{}</h2>\n", escaped(title)));
        content(self);
    }

    /// A row of a table of two columns.
    fn pair(&mut self, name: &str, value: impl Display) {
        self.write(format_args!(
            "<tr><th>{name}</th><td>{}</td></tr>\n",
            escaped(&value.to_string())
        ));
    }

    fn head(&mut self, evidence: &Evidence) {
        let directory = escaped(&path_text(&evidence.directory));
        self.write(format_args!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n\
             <meta name=\"referrer\" content=\"no-referrer\">\n\
             <title>Disk images in {directory}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <h1>Disk images in <code>{directory}</code></h1>\n",
            escaped(POLICY)
        ));
    }

    fn summary(&mut self, diagnosis: &Diagnosis, evidence: &Evidence) {
        let summary = &diagnosis.tree.summary;
        let with_findings = diagnosis.images_with_findings();
        self.raw("<table>\n");
        self.pair(
            "Images",
            format_args!("{} in {}", summary.files, human::count(summary.trees, "tree")),
        );
        let verdict = match with_findings {
            0 => "all are sound".to_owned(),
            images => format!("{images} with findings"),
        };
        self.pair(
            "Result",
            format_args!("{verdict} (exit code {})", diagnosis.exit().number()),
        );
        self.pair("Made by", format_args!("vhd {}", env!("CARGO_PKG_VERSION")));
        self.pair("Begun", seconds(evidence.begun));
        let ended = evidence.log.last().map_or(evidence.begun, |(time, _)| *time);
        self.pair("Ended", seconds(ended));
        let unread: Vec<&str> = diagnosis
            .tree
            .unreadable
            .iter()
            .map(|path| path.path.as_str())
            .collect();
        if !unread.is_empty() {
            self.pair("Not readable", unread.join(", "));
        }
        if diagnosis.tree.truncated {
            self.pair("Incomplete", "there is more than was looked at");
        }
        self.raw("</table>\n");
        self.write(format_args!(
            "<p>A detached signature is checked by <code>ssh-keygen -Y verify -n {} -f allowed_signers -I SIGNER \
             -s FILE.sig &lt;FILE</code>.</p>\n",
            sign::NAMESPACE
        ));
    }

    fn findings(&mut self, diagnosis: &Diagnosis) {
        self.section("Findings", |page| {
            if diagnosis.findings.is_empty() {
                page.raw("<p>None.</p>\n");
                return;
            }
            page.raw("<table>\n<tr><th>Severity</th><th>Image</th><th>Code</th><th>Offset</th><th>What was found</th></tr>\n");
            for finding in &diagnosis.findings {
                let severity = finding.severity.name();
                let offset = finding.offset.map(|offset| format!("{offset:#x}")).unwrap_or_default();
                page.write(format_args!(
                    "<tr><td class=\"severity {severity}\">{severity}</td><td class=\"name\">{}</td><td class=\"code\">{}</td><td>{offset}</td><td>{}</td></tr>\n",
                    escaped(&finding.path),
                    escaped(&finding.code),
                    escaped(&finding.message)
                ));
            }
            page.raw("</table>\n");
        });
    }

    fn commands(&mut self, diagnosis: &Diagnosis) {
        if !diagnosis.remedies.is_empty() {
            self.section("Commands that put it right, the safest first", |page| {
                let commands: String = diagnosis.remedies.iter().map(ToString::to_string).collect();
                page.write(format_args!("<pre>{}</pre>\n", escaped(&commands)));
            });
        }
        if !diagnosis.advice.is_empty() {
            self.section("What no command puts right by itself", |page| {
                page.raw("<ul>\n");
                for advice in &diagnosis.advice {
                    page.write(format_args!("<li>{}</li>\n", escaped(&advice.to_string())));
                }
                page.raw("</ul>\n");
            });
        }
    }

    fn images(&mut self, evidence: &Evidence) {
        self.section("Digests", |page| {
            page.raw("<table>\n<tr><th>Image</th><th>Bytes</th><th>SHA-256</th></tr>\n");
            evidence.images.iter().for_each(|image| page.image(image));
            page.raw("</table>\n<p>The digest of a file is that of its bytes (<code>sha256sum</code>), the digest of a disk that of what \
                      a guest reads (<code>vhd hash</code>). Disks are digested of images that no other one is based on.</p>\n");
        });
    }

    fn image(&mut self, image: &ImageEvidence) {
        let name = escaped(&image.path);
        let digest = image.file_sha256.as_deref().unwrap_or("-");
        self.write(format_args!(
            "<tr><td>{name}, the file</td><td>{}</td><td class=\"digest\">{digest}</td></tr>\n",
            image.file_size
        ));
        if let (Some(digest), Some(size)) = (&image.disk_sha256, image.disk_size) {
            self.write(format_args!(
                "<tr><td>{name}, the disk</td><td>{size}</td><td class=\"digest\">{digest}</td></tr>\n"
            ));
        }
        if let Some(reason) = &image.not_read {
            self.write(format_args!(
                "<tr><td>{name}</td><td></td><td>not read: {}</td></tr>\n",
                escaped(reason)
            ));
        }
    }

    fn maps(&mut self, evidence: &Evidence) {
        self.section("Allocation maps", |page| {
            page.raw(&svg::legend());
            page.raw("<table>\n");
            for image in evidence.images.iter().filter(|image| !image.map.is_empty()) {
                let size = image.disk_size.map(human::binary).unwrap_or_default();
                page.write(format_args!(
                    "<tr><td>{}</td><td>{size}</td><td>{}</td></tr>\n",
                    escaped(&image.path),
                    svg::map(&image.map)
                ));
            }
            page.raw("</table>\n");
        });
    }

    fn log(&mut self, evidence: &Evidence) {
        self.section("What was done, and when", |page| {
            page.raw("<table>\n");
            for (time, what) in &evidence.log {
                page.write(format_args!(
                    "<tr><td><code>{}</code></td><td>{}</td></tr>\n",
                    seconds(*time),
                    escaped(what)
                ));
            }
            page.raw("</table>\n");
        });
    }
}

/// A time to the millisecond.
fn seconds(time: Timestamp) -> String {
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn nothing_of_a_name_is_markup() {
        assert_eq!(
            escaped("<b>\"&'\u{202e}\u{1b}\u{0}"),
            "&lt;b&gt;&quot;&amp;&#39;\\u{202e}\\u{1b}\\u{0}"
        );
    }
}

//! `vhd report`: one file that needs nothing else, whatever the images are called; looked at in a real browser.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::compact::sha256;
use crate::support::{Lab, MIB, stderr, stdout};
use crate::tools::have;

/// Names that try to be markup, script, text in the other direction, or a command of a terminal.
const HOSTILE: [&str; 4] = [
    "<svg onload=\"document.title='owned'\">.vhd",
    "'\"><script>document.title='owned'<.vhd",
    "&lt;b&gt; \u{202e}dhv.\u{1b}[2J\nx.vhd",
    "<img src=x onerror=document.title='owned'>.vhd",
];

/// A chain with a damaged leaf, and images with hostile names.
fn hostile() -> Lab {
    let lab = Lab::new();
    lab.chain();
    for name in HOSTILE {
        lab.dynamic(name, 4 * MIB);
    }
    lab.damage("leaf.avhd", -512, &[0; 512]);
    lab
}

fn read(lab: &Lab, name: &str) -> String {
    fs::read_to_string(lab.path(name)).unwrap()
}

#[test]
fn the_report_has_what_the_doctor_finds_and_every_digest() {
    let lab = hostile();
    let before: Vec<String> = lab.names();
    let written = lab.json(&["report", ".", "-o", "r.html"], 4);
    let page = read(&lab, "r.html");
    let sum = Command::new("sha256sum").arg(lab.path("parent.vhd")).output().unwrap();
    let file_digest = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let disk_digest = sha256(&lab, "leaf.avhd");
    let version = concat!("vhd ", env!("CARGO_PKG_VERSION"));
    for text in [
        &*file_digest,
        &*disk_digest,
        version,
        "footer-damaged",
        "vhd repair ./leaf.avhd --yes",
        "<svg class=\"tree\"",
    ] {
        assert!(page.contains(text), "{text} in {page}");
    }
    let images = written["images"].as_array().unwrap();
    let leaf = images.iter().find(|image| image["path"] == "leaf.avhd").unwrap();
    assert_eq!(leaf["disk_sha256"], disk_digest);
    assert_eq!(written["findings"], 1);
    // Nothing else has changed, and nothing is replaced unasked.
    let after: Vec<String> = lab.names().into_iter().filter(|name| name != "r.html").collect();
    assert_eq!(after, before);
    assert!(stderr(&lab.run(&["report", ".", "-o", "r.html"], 8)).contains("VHD-E0305"));
    lab.run(&["report", ".", "-o", "r.html", "--force", "--no-digests"], 4);
    assert!(!read(&lab, "r.html").contains(&disk_digest));
    let streamed = stdout(&lab.run(&["report", ".", "-o", "-"], 4));
    assert!(streamed.starts_with("<!DOCTYPE html>") && streamed.ends_with("</html>\n"));
}

#[test]
fn an_image_in_use_is_named_and_not_read() {
    let lab = Lab::new();
    lab.chain();
    let opened = vhd_core::chain::OpenOptions::new()
        .write(true)
        .open(&lab.path("leaf.avhd"))
        .unwrap();
    let written = lab.json(&["report", ".", "-o", "r.html"], 7);
    opened.close().unwrap();
    let images = written["images"].as_array().unwrap();
    let leaf = images.iter().find(|image| image["path"] == "leaf.avhd").unwrap();
    assert!(leaf["file_sha256"].is_null() && leaf["not_read"].is_string(), "{leaf}");
    assert!(read(&lab, "r.html").contains("not read: "));
}

#[test]
fn nothing_of_a_name_becomes_markup_and_nothing_is_loaded() {
    let lab = hostile();
    lab.run(&["report", ".", "-o", "r.html"], 4);
    let page = read(&lab, "r.html");
    for tag in [
        "<script",
        "<img",
        "<svg onload",
        "onerror=document.title='",
        "<b>",
        "http://",
        "https://",
        "src=",
        "href=",
    ] {
        assert!(!page.replace("&lt;img src=x", "").contains(tag), "{tag}");
    }
    assert!(!page.contains(['\u{202e}', '\u{1b}']));
}

#[test]
fn a_signature_is_made_by_ssh_keygen_and_verified_by_it() {
    if !have(&["ssh-keygen"], "signatures of reports") {
        return;
    }
    let lab = Lab::new();
    lab.chain();
    let keygen = |args: &[&str]| {
        let output = Command::new("ssh-keygen")
            .args(args)
            .current_dir(lab.path(""))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    keygen(&["-q", "-t", "ed25519", "-N", "", "-f", "key"]);
    lab.run(&["report", ".", "-o", "r.html", "--sign", "key"], 0);
    let key = read(&lab, "key.pub");
    fs::write(lab.path("allowed"), format!("me@example.org {key}")).unwrap();
    let verify = |page: &str| {
        let line = format!("ssh-keygen -Y verify -f allowed -I me@example.org -n vhd-report -s r.html.sig <{page}");
        Command::new("bash")
            .args(["-c", &line])
            .current_dir(lab.path(""))
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(verify("r.html"));
    fs::write(lab.path("other.html"), read(&lab, "r.html").replace("sound", "SOUND")).unwrap();
    assert!(!verify("other.html"));
    // Without a key nothing is written.
    let refused = stderr(&lab.run(&["report", ".", "-o", "s.html", "--sign", "no-key"], 1));
    assert!(refused.contains("VHD-E0330"), "{refused}");
    assert!(!lab.exists("s.html") && !lab.exists("s.html.sig"));
    lab.run(&["report", ".", "-o", "r.html", "--sign", "key"], 8);
    lab.run(&["report", ".", "-o", "-", "--sign", "key"], 2);
}

/// Runs the browser on a page, without a network.
fn browse(lab: &Lab, page: &Path, args: &[&str]) -> String {
    let output = Command::new("unshare")
        .args([
            "--net",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-dev-shm-usage",
        ])
        .arg(format!("--user-data-dir={}", lab.path("profile").display()))
        .args(args)
        .arg(format!("file://{}", page.display()))
        .env("HOME", lab.path(""))
        .current_dir(lab.path(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_browser_shows_the_trees_and_runs_nothing() {
    if !have(
        &["chromium", "pdftotext", "unshare"],
        "what a browser shows of a report",
    ) {
        return;
    }
    let lab = hostile();
    lab.run(&["report", ".", "-o", "r.html"], 4);
    let page = lab.path("r.html");
    // The document as the browser has understood it, scripts run if there were any.
    let dom = browse(&lab, &page, &["--dump-dom", "--virtual-time-budget=2000"]);
    assert!(
        dom.contains("<title>Disk images in ") && !dom.contains("<title>owned"),
        "{dom}"
    );
    assert_eq!(dom.matches("<circle").count(), 2 + HOSTILE.len(), "{dom}");
    assert_eq!(dom.matches("<svg class=\"map\"").count(), 2 + HOSTILE.len());
    assert!(
        !dom.contains("<script") && !dom.contains("<img") && !dom.contains("<svg onload"),
        "{dom}"
    );
    // What is on the page for somebody who looks at it.
    browse(&lab, &page, &["--print-to-pdf=r.pdf", "--no-pdf-header-footer"]);
    let text = Command::new("pdftotext")
        .args(["-layout", "r.pdf", "-"])
        .current_dir(lab.path(""))
        .output()
        .unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for shown in [
        "parent.vhd",
        "leaf.avhd",
        "<svg onload=",
        "\\u{202e}dhv.\\u{1b}[2J",
        "Allocation maps",
        "footer-damaged",
    ] {
        assert!(text.contains(shown), "{shown} in {text}");
    }
    // The leaf's disk, not that of its parent, has a digest.
    let digest = sha256(&lab, "leaf.avhd");
    assert!(text.split_whitespace().collect::<String>().contains(&digest), "{text}");
}

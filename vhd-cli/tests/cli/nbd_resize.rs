//! `vhd nbd --resizable`, and `vhd resize` of a disk on a server.

use rustix::process::Signal;
use serde_json::json;

use crate::nbd::{Serving, has};
use crate::support::{Lab, MIB, stderr, stdout};

fn uri(lab: &Lab, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", lab.path("s.sock").display())
}

#[test]
fn a_disk_is_resized_while_it_is_served() {
    for (image, kind) in [("disk.vhd", "dynamic"), ("disk.vhd", "fixed"), ("disk.raw", "raw")] {
        let lab = Lab::new();
        match kind {
            "dynamic" => lab.dynamic(image, 8 * MIB),
            "fixed" => lab.fixed(image, 8 * MIB),
            _ => std::fs::write(lab.path(image), vec![0; 8 << 20]).unwrap(),
        }
        lab.write(image, 4 * MIB, &[7; 4096]);
        let format = if kind == "raw" { "raw" } else { "vhd" };
        let args = ["--unix", "s.sock", "--resizable", "--from", format, image];
        let serving = Serving::start(&lab, &args);
        let uri = uri(&lab, "");
        let planned = lab.json(&["resize", &uri, "1G", "--dry-run"], 0);
        assert_eq!(
            (&planned["dry_run"], &planned["size"]),
            (&json!(true), &json!(1024 * MIB))
        );
        let done = lab.json(&["resize", &uri, "1G"], 0);
        assert_eq!(done["files"], planned["files"]);
        assert_eq!(
            (&done["files"][0]["type"], &done["files"][0]["old_size"]),
            (&json!("NBD export"), &json!(8 * MIB))
        );
        assert_eq!(lab.json(&["info", &uri], 0)["virtual_size"], 1024 * MIB);
        let text = stdout(&lab.run(&["resize", &uri, "1G"], 0));
        assert!(text.contains("has 1073741824 bytes (1.00 GiB) already"), "{text}");
        let code = |args: &[&str]| lab.json(args, 8)["error"]["code"].as_str().unwrap().to_owned();
        assert_eq!(code(&["resize", &uri, "8M"]), "VHD-E0409");
        // What is written is not cut off, and the server says what it is.
        assert_eq!(code(&["resize", &uri, "2M", "--shrink"]), "VHD-E0611");
        let said = stderr(&lab.run(&["resize", &uri, "2M", "--shrink"], 8));
        assert!(said.contains("data at 0x400000..0x401000"), "{said}");
        let text = stdout(&lab.run(&["resize", &uri, "5M", "--shrink"], 0));
        assert!(text.contains("has 5242880 bytes (5.00 MiB) now"), "{text}");
        if has("nbdinfo") {
            let size = std::process::Command::new("nbdinfo")
                .args(["--size", &uri])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&size.stdout).trim(), "5242880");
        }
        let (exit, said) = serving.stop(Signal::TERM);
        assert_eq!((exit, said.as_str()), (Some(0), ""), "{kind}");
        assert_eq!(lab.json(&["info", image], 0)["virtual_size"], 5 * MIB);
        let flat = lab
            .run(&["convert", image, "-", "--to", "raw"], 0)
            .get_output()
            .stdout
            .clone();
        let mut expected = vec![0; 5 << 20];
        expected[4 << 20..][..4096].fill(7);
        assert!(flat == expected, "{kind}");
    }
}

#[test]
fn a_disk_that_is_not_to_be_resized() {
    let lab = Lab::new();
    lab.chain();
    lab.dynamic("alone.vhd", 8 * MIB);
    let refused = |uri: &str, text: &str| {
        let said = stderr(&lab.run(&["resize", uri, "16M"], 8));
        assert!(
            said.starts_with("vhd: error[VHD-E0611]: ") && said.contains(text),
            "{said}"
        );
    };
    // Nobody said that it may be.
    let serving = Serving::start(&lab, &["--unix", "s.sock", "alone.vhd"]);
    refused(&uri(&lab, ""), "--resizable");
    for option in ["--tree", "--fix-gpt"] {
        lab.run(&["resize", &uri(&lab, ""), "16M", option], 2);
    }
    assert_eq!(serving.stop(Signal::TERM).0, Some(0));
    // One that is tied to others is served all the same, and the operator is told.
    let args = ["nbd", "--unix", "s.sock", "--resizable", "leaf.avhd"];
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_vhd"))
        .args(args)
        .current_dir(lab.path(""))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let warning = lines.next().unwrap().unwrap();
    assert!(
        warning.starts_with("vhd: warning: the size of leaf.avhd can't be changed by clients: ")
            && warning.contains("it is based on"),
        "{warning}"
    );
    assert!(lines.next().unwrap().unwrap().contains("listening on"));
    refused(&uri(&lab, ""), "--resizable");
    child.kill().unwrap();
    child.wait().unwrap();
    for option in ["--read-only", "--snapshot"] {
        lab.run(&["nbd", "--unix", "s.sock", "--resizable", option, "alone.vhd"], 2);
    }
}

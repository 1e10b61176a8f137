//! What `info`, `map`, `hash` and `compare` report.

use std::fs;

use serde_json::{Value, json};
use vhd_core::format::{FOOTER_SIZE, Footer};

use crate::support::{Lab, MIB, stderr, stdout};

#[test]
fn info_shows_the_whole_chain() {
    let lab = Lab::new();
    lab.chain();
    let info = lab.json(&["info", "leaf.avhd"], 0);
    assert_eq!(info["format"], "vhd");
    assert_eq!(info["virtual_size"], 8 * MIB);
    let (leaf, parent) = (&info["layers"][0], &info["layers"][1]);
    assert_eq!(
        (&leaf["type"], &parent["type"]),
        (&json!("differencing"), &json!("dynamic"))
    );
    assert_eq!(leaf["parent"]["id"], parent["id"]);
    assert_eq!(
        leaf["parent"]["paths"][0],
        json!({"source": "W2ru", "path": ".\\parent.vhd"})
    );
    assert_eq!((&leaf["allocated_blocks"], &leaf["blocks"]), (&json!(1), &json!(4)));
    assert_eq!(leaf["owned_bytes"], 512);
    assert_eq!(leaf["file_size"], lab.len("leaf.avhd"));
    assert_eq!(leaf["creator"]["application"], "win");
    assert!(leaf["disk_usage"].as_u64().unwrap() > 0);
    assert!(leaf["created"].as_str().unwrap().ends_with('Z'));
    let text = stdout(&lab.run(&["info", "leaf.avhd"], 0));
    for needle in [
        "8388608 bytes (8.00 MiB)",
        "a chain of 2 layers",
        ".\\parent.vhd (W2ru)",
        "1 of 4 allocated",
    ] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
}

#[test]
fn info_knows_raw_disks() {
    let lab = Lab::new();
    let info = lab.json(&["info", "other.raw"], 0);
    assert_eq!((&info["format"], &info["virtual_size"]), (&json!("raw"), &json!(4096)));
    assert_eq!(info["layers"][0]["format"], "raw");
}

/// Changes the footer of a fixed image and keeps it valid.
fn edit_footer(lab: &Lab, name: &str, edit: impl FnOnce(&mut Footer)) {
    let mut bytes = fs::read(lab.path(name)).unwrap();
    let at = bytes.len() - FOOTER_SIZE;
    let mut footer = Footer::decode(&bytes[at..]).unwrap();
    edit(&mut footer);
    bytes[at..].copy_from_slice(&footer.encode());
    fs::write(lab.path(name), bytes).unwrap();
}

fn remark_codes(info: &Value) -> Vec<&str> {
    let remarks = info["layers"][0]["remarks"].as_array().unwrap();
    remarks.iter().map(|remark| remark["code"].as_str().unwrap()).collect()
}

#[test]
fn info_tells_every_disagreement() {
    let lab = Lab::new();
    lab.fixed("a.vhd", 4 * MIB);
    edit_footer(&lab, "a.vhd", |footer| {
        footer.original_size = MIB;
        footer.current_size = 3 * MIB;
        footer.creator_application = *b"vpc ";
        footer.saved_state = true;
        footer.hidden = 1;
    });
    let info = lab.json(&["info", "a.vhd"], 0);
    let codes = remark_codes(&info);
    for code in [
        "original-size",
        "geometry-size",
        "geometry-formula",
        "file-size",
        "qemu-size",
        "saved-state",
        "hidden",
    ] {
        assert!(codes.contains(&code), "{code}: {codes:?}");
    }
    assert_eq!(
        (&info["layers"][0]["saved_state"], &info["layers"][0]["hidden"]),
        (&json!(true), &json!(1))
    );
}

#[test]
fn info_tells_damaged_footers() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", MIB);
    lab.damage("a.vhd", -512, &[0; 512]);
    let info = lab.json(&["info", "a.vhd"], 0);
    assert_eq!(info["layers"][0]["footer"], "copy");
    assert!(remark_codes(&info).contains(&"footer-damaged"));
    assert!(stderr(&lab.run(&["info", "a.vhd"], 0)).starts_with("vhd: warning: "));
    assert_eq!(info["warnings"].as_array().unwrap().len(), 1);
    lab.dynamic("b.vhd", MIB);
    lab.damage("b.vhd", 8, &[9]);
    assert!(remark_codes(&lab.json(&["info", "b.vhd"], 0)).contains(&"footer-copy-damaged"));
}

#[test]
fn control_characters_of_an_image_do_not_reach_the_terminal() {
    let lab = Lab::new();
    lab.fixed("p.vhd", MIB);
    fs::rename(lab.path("p.vhd"), lab.path("p\u{1b}[2J.vhd")).unwrap();
    lab.run(&["create", "c.avhd", "--parent", "p\u{1b}[2J.vhd"], 0);
    let info = lab.run(&["info", "c.avhd"], 0);
    assert!(!stdout(&info).contains('\u{1b}'));
    fs::remove_file(lab.path("p\u{1b}[2J.vhd")).unwrap();
    let info = lab.run(&["info", "c.avhd"], 6);
    assert!(!stdout(&info).contains('\u{1b}') && !stderr(&info).contains('\u{1b}'));
}

#[test]
fn map_has_the_fields_of_qemu_img_and_no_gaps() {
    let lab = Lab::new();
    lab.chain();
    let map = lab.json(&["map", "leaf.avhd"], 0);
    assert_eq!(map["files"], json!(["leaf.avhd", "parent.vhd"]));
    let mut end = 0;
    for extent in map["extents"].as_array().unwrap() {
        let object = extent.as_object().unwrap();
        let mut keys: Vec<&str> = object
            .keys()
            .map(String::as_str)
            .filter(|key| *key != "offset")
            .collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            ["compressed", "data", "depth", "length", "present", "start", "zero"]
        );
        assert_eq!(object.contains_key("offset"), extent["present"] == true, "{extent}");
        assert_eq!(extent["start"], end);
        assert!(extent["zero"] != extent["data"]);
        end += extent["length"].as_u64().unwrap();
    }
    assert_eq!(end, 8 * MIB);
    let at = |start: u64| {
        let mut extents = map["extents"].as_array().unwrap().iter();
        extents.find(|extent| extent["start"] == start).unwrap().clone()
    };
    assert_eq!(
        (&at(3 * MIB)["depth"], &at(3 * MIB)["length"]),
        (&json!(0), &json!(512))
    );
    assert_eq!((&at(MIB)["depth"], &at(MIB)["data"]), (&json!(1), &json!(true)));
    let text = stdout(&lab.run(&["map", "leaf.avhd"], 0));
    assert!(text.contains("hole") && text.contains("depth 1: parent.vhd"), "{text}");
}

#[test]
fn hash_begins_with_the_digest() {
    let lab = Lab::new();
    // printf '' | head -c 1048576 /dev/zero | sha256sum
    const ZEROES: &str = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58";
    lab.dynamic("a.vhd", MIB);
    lab.fixed("b.vhd", MIB);
    fs::write(lab.path("c.raw"), vec![0; 1 << 20]).unwrap();
    for name in ["a.vhd", "b.vhd", "c.raw"] {
        assert_eq!(stdout(&lab.run(&["hash", name], 0)), format!("{ZEROES}  {name}\n"));
        let report = lab.json(&["hash", name], 0);
        assert_eq!((&report["sha256"], &report["image"]), (&json!(ZEROES), &json!(name)));
    }
}

#[test]
fn compare_tells_where_contents_differ() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 8 * MIB);
    lab.fixed("b.vhd", 8 * MIB);
    assert!(stdout(&lab.run(&["compare", "a.vhd", "b.vhd"], 0)).contains("identical"));
    let report = lab.json(&["compare", "a.vhd", "b.vhd"], 0);
    assert_eq!(
        (&report["identical"], &report["first_difference"]),
        (&json!(true), &json!(null))
    );
    lab.write("a.vhd", 5 * MIB + 700, &[1]);
    let report = lab.json(&["compare", "a.vhd", "b.vhd"], 5);
    assert_eq!(report["first_difference"], 5 * MIB + 700);
    assert_eq!(report["ranges"], json!([{"start": 5 * MIB + 512, "length": 512}]));
    assert_eq!(
        (&report["different_bytes"], &report["truncated"]),
        (&json!(512), &json!(false))
    );
}

#[test]
fn compare_limits_what_it_lists() {
    let lab = Lab::new();
    let mut bytes = vec![0; 12 << 20];
    fs::write(lab.path("a.raw"), &bytes).unwrap();
    bytes.iter_mut().step_by(1024).for_each(|byte| *byte = 1);
    fs::write(lab.path("b.raw"), &bytes).unwrap();
    let report = lab.json(&["compare", "a.raw", "b.raw"], 5);
    assert_eq!(
        (&report["truncated"], &report["range_count"]),
        (&json!(true), &json!(12 << 10))
    );
    assert_eq!(report["ranges"].as_array().unwrap().len(), 10_000);
    assert_eq!(report["different_bytes"], 6 << 20);
    let text = stdout(&lab.run(&["compare", "a.raw", "b.raw"], 5));
    assert!(
        text.contains("and 12278 more ranges") && text.lines().count() < 15,
        "{text}"
    );
}

#[test]
fn compare_takes_the_rest_of_the_longer_disk_for_zeroes() {
    let lab = Lab::new();
    lab.dynamic("a.vhd", 2 * MIB);
    fs::write(lab.path("b.raw"), vec![0; 4 << 20]).unwrap();
    assert!(stdout(&lab.run(&["compare", "a.vhd", "b.raw"], 0)).contains("Sizes differ"));
    let mut bytes = vec![0; 4 << 20];
    bytes[3 << 20] = 1;
    fs::write(lab.path("b.raw"), bytes).unwrap();
    assert_eq!(lab.json(&["compare", "a.vhd", "b.raw"], 5)["first_difference"], 3 * MIB);
}

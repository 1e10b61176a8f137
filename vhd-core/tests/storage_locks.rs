//! Image locks against the real `qemu-io`: each side must respect the other.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::NamedTempFile;
use vhd_core::ErrorKind;
use vhd_core::storage::{Access, HostFile, LockHolder, Sharing, StorageError, StorageFile as _};

const IMAGE_LEN: u64 = 1 << 20;

fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(IMAGE_LEN).unwrap();
    file
}

fn open(image: &NamedTempFile, access: Access) -> Result<HostFile, StorageError> {
    HostFile::open(image.path(), access, Sharing::Exclusive)
}

/// Whether qemu-io is there. A test that goes on without it says so, and in CI does not go on.
fn qemu_io_is_missing(untested: &str) -> bool {
    if Command::new("qemu-io").arg("--version").output().is_ok() {
        return false;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "qemu-io is needed to test that {untested}"
    );
    eprintln!("NOT TESTED, qemu-io is missing: {untested}");
    true
}

/// A qemu-io that holds an image open until dropped.
struct QemuIo {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl QemuIo {
    /// Opens the image, and returns when it is open.
    fn hold(image: &Path, options: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(options)
            .args(["-f", "raw"])
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut qemu = Self { child, output };
        // It reads commands only once the image is open, so an answer to one means that it is.
        qemu.child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = String::new();
        while !answer.contains("1 MiB") {
            answer.clear();
            assert_ne!(
                qemu.output.read_line(&mut answer).unwrap(),
                0,
                "qemu-io did not open the image"
            );
        }
        qemu
    }

    /// Its end, once its standard input is closed.
    fn finish(&mut self) {
        drop(self.child.stdin.take());
        self.output.read_to_string(&mut String::new()).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What qemu-io says when it writes to the image, as one that succeeds or not.
fn write_with_qemu(image: &Path) -> Result<(), String> {
    let output = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 512"])
        .arg(image)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn a_writer_is_refused_while_qemu_writes_and_told_who_it_is() {
    if qemu_io_is_missing("a writer is refused while qemu-io has the image open for writing") {
        return;
    }
    let image = image();
    let mut qemu = QemuIo::hold(image.path(), &[]);
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let error = open(&image, access).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        let StorageError::Locked { wanted, holder, .. } = &error else {
            panic!("{error:?}")
        };
        let expected = LockHolder {
            pid: qemu.child.id(),
            program: Some("qemu-io".to_owned()),
        };
        assert_eq!((*wanted, holder.as_ref()), (access, Some(&expected)));
        assert!(
            error.to_string().contains(&format!("qemu-io (pid {})", expected.pid)),
            "{error}"
        );
    }
    HostFile::open(image.path(), Access::ReadOnly, Sharing::Unlocked).unwrap();
    qemu.finish();
    open(&image, Access::ReadWrite).unwrap();
}

#[test]
fn a_reader_goes_together_with_a_qemu_that_reads() {
    if qemu_io_is_missing("a reader is let in while qemu-io reads the image") {
        return;
    }
    let image = image();
    let mut qemu = QemuIo::hold(image.path(), &["-r"]);
    open(&image, Access::ReadOnly).unwrap();
    qemu.finish();
}

#[test]
fn qemu_may_not_write_while_we_have_the_image_open() {
    if qemu_io_is_missing("qemu-io is refused while we have the image open") {
        return;
    }
    let image = image();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let held = open(&image, access).unwrap();
        let refusal = write_with_qemu(image.path()).unwrap_err();
        assert!(refusal.contains(r#"Failed to get "write" lock"#), "{refusal}");
        drop(held);
        write_with_qemu(image.path()).unwrap();
    }
}

#[test]
fn qemu_reads_beside_our_readers_and_not_beside_our_writer() {
    if qemu_io_is_missing("qemu-img is refused while we write the image, and let in while we read it") {
        return;
    }
    // A raw image shares everything, so qemu would read it beside any writer; a structured one does not.
    let image = image();
    let created = Command::new("qemu-img")
        .args(["create", "-q", "-f", "vpc"])
        .arg(image.path())
        .arg("1M")
        .status();
    assert!(created.unwrap().success());
    let info = || {
        Command::new("qemu-img")
            .args(["info", "-f", "vpc"])
            .arg(image.path())
            .output()
            .unwrap()
    };
    let reader = open(&image, Access::ReadOnly).unwrap();
    assert!(info().status.success());
    drop(reader);
    let _writer = open(&image, Access::ReadWrite).unwrap();
    let refused = info();
    assert!(!refused.status.success());
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("lock"), "{message}");
}

#[test]
fn of_our_own_handles_many_read_or_one_writes() {
    let image = image();
    let first = open(&image, Access::ReadOnly).unwrap();
    let second = open(&image, Access::ReadOnly).unwrap();
    assert_eq!(open(&image, Access::ReadWrite).unwrap_err().kind(), ErrorKind::Locked);
    drop(first);
    assert_eq!(open(&image, Access::ReadWrite).unwrap_err().kind(), ErrorKind::Locked);
    drop(second);
    let writer = open(&image, Access::ReadWrite).unwrap();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        match open(&image, access).unwrap_err() {
            StorageError::Locked {
                holder: Some(holder), ..
            } => assert_eq!(holder.pid, std::process::id()),
            other => panic!("{other:?}"),
        }
    }
    drop(writer);
    open(&image, Access::ReadWrite).unwrap();
}

#[test]
fn closing_another_handle_of_the_file_releases_nothing() {
    let image = image();
    let _writer = open(&image, Access::ReadWrite).unwrap();
    drop(File::open(image.path()).unwrap());
    assert_eq!(open(&image, Access::ReadOnly).unwrap_err().kind(), ErrorKind::Locked);
}

#[test]
fn a_lock_leaves_the_bytes_alone() {
    let image = image();
    let writer = open(&image, Access::ReadWrite).unwrap();
    writer.write_all_at(&[7; 512], 0).unwrap();
    let mut buf = [0; 512];
    writer.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!((buf, writer.len().unwrap()), ([7; 512], IMAGE_LEN));
}

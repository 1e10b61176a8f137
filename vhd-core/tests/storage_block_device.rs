//! An image may live on a block device: here a loop device.

use std::path::PathBuf;
use std::process::Command;

use tempfile::NamedTempFile;
use vhd_core::ErrorKind;
use vhd_core::storage::{Access, HostFile, Segment, Sharing, StorageFile as _};

const MIB: u64 = 1 << 20;

/// A loop device over a temporary file; detached when dropped.
struct LoopDevice {
    path: PathBuf,
    _image: NamedTempFile,
}

impl LoopDevice {
    fn attach(len: u64) -> Result<Self, String> {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(len).unwrap();
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(image.path())
            .output();
        let output = output.map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let path = String::from_utf8(output.stdout).unwrap().trim_end().into();
        Ok(Self { path, _image: image })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status()
            .is_ok_and(|status| status.success())
        {
            eprintln!("{} stays attached", self.path.display());
        }
    }
}

#[test]
fn a_block_device_is_a_file_of_fixed_length() {
    let device = match LoopDevice::attach(8 * MIB) {
        Ok(device) => device,
        Err(reason) => {
            assert!(
                std::env::var_os("CI").is_none(),
                "a loop device is needed to test block devices: {reason}"
            );
            return eprintln!("NOT TESTED: images on block devices: {reason}");
        }
    };
    let open = || HostFile::open(&device.path, Access::ReadWrite, Sharing::Exclusive);
    let file = open().unwrap();
    assert_eq!(open().unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(file.len().unwrap(), 8 * MIB);
    assert_eq!(file.segment_at(3).unwrap(), (Segment::Data, 8 * MIB));
    assert_eq!(file.segment_at(8 * MIB).unwrap(), (Segment::Hole, 8 * MIB));

    file.write_all_at(&[7; 8192], MIB).unwrap();
    file.sync().unwrap();
    let mut buf = [0; 8192];
    file.read_exact_at(&mut buf, MIB).unwrap();
    assert_eq!(buf, [7; 8192]);
    assert_eq!(
        file.read_exact_at(&mut buf, 8 * MIB - 1).unwrap_err().kind(),
        std::io::ErrorKind::UnexpectedEof
    );

    file.set_len(8 * MIB).unwrap();
    assert_eq!(
        file.set_len(9 * MIB).unwrap_err().kind(),
        std::io::ErrorKind::Unsupported
    );
    assert_eq!(
        file.allocate(0, 9 * MIB).unwrap_err().kind(),
        std::io::ErrorKind::Unsupported
    );
    assert_eq!(
        file.punch_hole(MIB + 1, 5).unwrap_err().kind(),
        std::io::ErrorKind::Unsupported
    );
    file.zero_range(MIB, 4096).unwrap();
    file.read_exact_at(&mut buf, MIB).unwrap();
    assert!(buf[..4096] == [0; 4096] && buf[4096..] == [7; 4096]);
}

//! The kernel's command line.

use crate::Error;
use crate::virtio::mmio::PAGE;

/// Bytes that Linux for x86 reads, the zero at the end included.
pub(super) const CAPACITY: usize = 2048;

/// What every kernel is given: its console, and a panic or reboot that ends the machine.
const ALWAYS: &str = "console=ttyS0 reboot=k panic=-1";

/// Composes the line: what the disk has, what is always there, the devices, and what the user adds. Each overrides what was
/// before.
pub(super) fn compose(disk: &str, devices: &[(u64, u32)], append: &str) -> Result<String, Error> {
    let mut words: Vec<String> = vec![disk.to_owned(), ALWAYS.to_owned()];
    for (address, interrupt) in devices {
        words.push(format!("virtio_mmio.device={PAGE}@{address:#x}:{interrupt}"));
    }
    words.push(append.to_owned());
    words.retain(|word| !word.is_empty());
    let line = words.join(" ");
    if !line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return Err(Error::CommandLineCharacter);
    }
    if line.len() >= CAPACITY {
        return Err(Error::CommandLine {
            len: line.len(),
            limit: CAPACITY - 1,
        });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_has_the_last_word() {
        let line = compose("console=tty0 ro", &[(0xd000_0000, 5)], "panic=3 root=/dev/vda").unwrap();
        assert!(line.contains(" virtio_mmio.device=4096@0xd0000000:5 "), "{line}");
        assert!(line.starts_with("console=tty0 ro console=ttyS0 "), "{line}");
        assert!(line.ends_with(" panic=3 root=/dev/vda"), "{line}");
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        assert!(matches!(compose("", &[], "a\nb"), Err(Error::CommandLineCharacter)));
        assert!(matches!(compose("", &[], "a\0b"), Err(Error::CommandLineCharacter)));
        let longest = CAPACITY - 1 - ALWAYS.len() - 1;
        assert!(compose("", &[], &"a".repeat(longest)).is_ok());
        let error = compose("", &[], &"a".repeat(longest + 1)).unwrap_err();
        assert!(
            matches!(error, Error::CommandLine { len: 2048, limit: 2047 }),
            "{error}"
        );
    }
}

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;

/// Notes what is routed.
#[derive(Default)]
struct Noted(Mutex<Vec<(u32, Message)>>);

impl Wires for Noted {
    fn route(&self, line: u32, message: Message) {
        self.0.lock().unwrap().push((line, message));
    }

    fn connect_doorbell(&self, _: &EventFd, _: u64) {}

    fn disconnect_doorbell(&self, _: &EventFd, _: u64) {}
}

fn msix() -> (Msix, Arc<Noted>) {
    let noted = Arc::new(Noted::default());
    let vector = |line| Vector {
        event: EventFd::new(EFD_NONBLOCK).unwrap(),
        line,
    };
    let wires: Arc<dyn Wires> = noted.clone();
    (Msix::new(vec![vector(24), vector(25)], wires), noted)
}

fn set(msix: &Msix, number: usize, data: u32, masked: u32) {
    let at = number * ENTRY;
    msix.write_table(at, &0xfee0_0000_u64.to_le_bytes());
    msix.write_table(at + 8, &data.to_le_bytes());
    msix.write_table(at + 12, &masked.to_le_bytes());
}

fn sent(msix: &Msix, number: usize) -> bool {
    msix.vectors[number].event.read().is_ok()
}

#[test]
fn a_message_is_sent_as_the_table_has_it() {
    let (msix, noted) = msix();
    msix.send(1);
    set(&msix, 1, 0x41, 0);
    assert!(!sent(&msix, 1), "messages are not used yet");
    msix.set_control(ENABLED);
    let message = Message {
        address: 0xfee0_0000,
        data: 0x41,
    };
    assert_eq!(*noted.0.lock().unwrap(), [(25, message)]);
    msix.send(1);
    assert!(sent(&msix, 1) && !sent(&msix, 0));
    // Without a change KVM is asked nothing.
    set(&msix, 1, 0x41, 1);
    set(&msix, 1, 0x41, 0);
    assert_eq!(noted.0.lock().unwrap().len(), 1);
    set(&msix, 1, 0x42, 1);
    set(&msix, 1, 0x42, 0);
    assert_eq!(noted.0.lock().unwrap()[1].1.data, 0x42);
    msix.send(2);
    msix.send(0xffff);
}

#[test]
fn what_is_masked_waits() {
    let (msix, _) = msix();
    let pending = || {
        let mut byte = [0xff];
        msix.read_pending(0, &mut byte);
        byte[0]
    };
    set(&msix, 0, 1, 0);
    set(&msix, 1, 2, 1);
    msix.set_control(ENABLED | MASK_ALL);
    msix.send(0);
    msix.send(1);
    assert_eq!((pending(), sent(&msix, 0), sent(&msix, 1)), (3, false, false));
    msix.set_control(ENABLED);
    assert_eq!((pending(), sent(&msix, 0), sent(&msix, 1)), (2, true, false));
    set(&msix, 1, 2, 0);
    assert_eq!((pending(), sent(&msix, 1)), (0, true));
    set(&msix, 1, 2, 1);
    msix.send(1);
    msix.forget();
    set(&msix, 1, 2, 0);
    assert!(!sent(&msix, 1));
}

#[test]
fn odd_accesses_change_nothing() {
    let (msix, _) = msix();
    for (offset, len) in [(0, 1), (2, 4), (4, 8), (12, 8), (32, 4), (usize::MAX - 15, 8), (0, 3)] {
        msix.write_table(offset, &vec![0xff; len]);
        msix.read_table(offset, &mut vec![0; len]);
    }
    let mut entry = [0xff; ENTRY];
    msix.read_table(0, &mut entry);
    assert_eq!(entry, std::array::from_fn(|at| u8::from(at == 12)));
    let mut far = [0xff; 4];
    msix.read_pending(1 << 20, &mut far);
    assert_eq!(far, [0; 4]);
}

//! Random numbers for guests.

use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};

use crate::payload::{Payload, has_kvm};
use crate::support::{Lab, beside_the_test, stderr};
use crate::vm::kernel;

/// Bytes that the guest draws at a time.
const LEN: usize = 32;

fn start(lab: &Lab, args: &[&str]) -> Child {
    let mut command = beside_the_test();
    command.arg("vm").args(args).current_dir(lab.path("."));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Has the guest draw once more.
fn draw(machine: &mut Child) -> Vec<u8> {
    machine.stdin.as_mut().unwrap().write_all(b"?").unwrap();
    let mut answer = [0; 1 + LEN];
    machine.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(answer[0], b'?');
    answer[1..].to_vec()
}

#[test]
fn a_guest_draws_random_numbers_wherever_it_is() {
    if !has_kvm("random numbers for guests") {
        return;
    }
    let lab = Lab::new();
    let len = u32::try_from(LEN).unwrap();
    let guest = (0..6).fold(Payload::on_pci().start_rng().print("up"), |guest, _| {
        guest.echo().print_random(len)
    });
    kernel(&lab, "guest", &guest.power_off());
    let name = format!("random-{}", std::process::id());
    let run = [
        "run",
        "--name",
        &name,
        "--kernel",
        "guest",
        "--machine",
        "vhd-1",
        "--memory",
        "16M",
        "--rng",
    ];
    let mut machine = start(&lab, &run);
    let mut up = [0; 2];
    machine.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let mut drawn = vec![draw(&mut machine), draw(&mut machine)];
    // It is saved and restored with the machine, and it goes back to a snapshot.
    lab.run(&["vm", "save", &name, "state"], 0);
    assert!(machine.wait().unwrap().success());
    let mut machine = start(&lab, &["restore", "state"]);
    drawn.push(draw(&mut machine));
    lab.run(&["vm", "snapshot", "create", &name, "here"], 0);
    drawn.push(draw(&mut machine));
    lab.run(&["vm", "snapshot", "apply", &name, "here", "--discard-current"], 0);
    drawn.extend([draw(&mut machine), draw(&mut machine), draw(&mut machine)]);
    assert!(machine.wait().unwrap().success());
    lab.run(&["vm", "snapshot", "delete", &name, "here"], 0);
    for (at, bytes) in drawn.iter().enumerate() {
        assert!(bytes.iter().any(|byte| *byte != 0), "{drawn:?}");
        assert!(drawn[..at].iter().all(|before| before != bytes), "{drawn:?}");
    }
}

#[test]
fn a_machine_without_slots_has_none() {
    if !has_kvm("random numbers for guests without PCI") {
        return;
    }
    let lab = Lab::new();
    kernel(&lab, "guest", &Payload::new().power_off());
    let refused = stderr(&lab.run(&["vm", "run", "--kernel", "guest", "--machine", "mmio", "--rng"], 8));
    assert!(
        refused.starts_with("vhd: error[VHD-E0814]") && refused.contains("vhd-1"),
        "{refused}"
    );
}

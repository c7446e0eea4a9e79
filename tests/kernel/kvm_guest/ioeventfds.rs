//! A guest's doorbell: stores that KVM turns into signals while the BAR decodes, wherever it is.

use super::guest::{BAR, Mode, Word, code, kvm_or_skip};
use super::{bar, guest};
use crate::support;
use kvm_ioctls::VcpuExit;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use revocable_mmio::Strategy;
use revocable_mmio::ioeventfd::{IoEventFdError, IoEventFds, Width};
use revocable_mmio::kvm::{Handled, WhenDisabled};
use std::os::fd::AsFd;
use std::sync::Arc;

const BELL: u32 = 0x1080;

#[test]
fn a_doorbell_signals_while_its_bar_is_enabled_and_exits_while_it_is_not() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let bar = bar(Strategy::Detach);
    let (mut guest, _slots, mut exits) =
        guest(&kvm, Mode::Protected, code::STORES_32, WhenDisabled::UnsupportedRequest);
    let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let doorbells = IoEventFds::new(Arc::clone(&guest.vm), &bar, BAR).expect("nothing is in the way");
    doorbells.add(BELL.into(), Width::Four, Some(7), bell.as_fd()).expect("KVM takes it");
    let twice = doorbells.add(BELL.into(), Width::Four, Some(7), bell.as_fd());
    assert!(matches!(twice, Err(IoEventFdError::Exists { .. })));
    let collides = doorbells.add(BELL.into(), Width::Four, None, bell.as_fd());
    assert!(
        matches!(&collides, Err(IoEventFdError::Vm { source, .. }) if source.errno == Errno::EEXIST),
        "{collides:?}"
    );
    assert_eq!(doorbells.registered(), 1);

    // Rings once, and returns the guest address of the store if it exited.
    let mut ring = |at: u32, value: u32| {
        guest.ram.set(Word::AT, at);
        guest.ram.set(Word::STORED, value);
        let mut exited = None;
        loop {
            match exits.handle(guest.vcpu.run()).expect("every exit is handled") {
                Handled::Other(Ok(VcpuExit::MmioWrite(gpa, _))) => exited = Some(gpa),
                Handled::Other(Ok(VcpuExit::IoOut(0x11, _))) => return exited,
                other => panic!("unexpected: {other:?}"),
            }
        }
    };
    let here = Some(BAR + u64::from(BELL));
    assert_eq!((ring(BELL, 7), bell.read()), (None, Ok(1)), "enabled: a signal, and no exit");
    assert_eq!((ring(BELL, 8), bell.read()), (here, Err(Errno::EAGAIN)), "another value");
    bar.disable().expect("nothing is in the way");
    assert_eq!((ring(BELL, 7), bell.read()), (here, Err(Errno::EAGAIN)), "disabled: an exit, and no signal");
    doorbells.move_to(BAR + 0x10_0000).expect("nothing is registered now");
    bar.enable().expect("it comes back");
    assert_eq!((ring(BELL, 7), bell.read()), (here, Err(Errno::EAGAIN)), "it has moved away");
    assert_eq!((ring(0x10_0000 + BELL, 7), bell.read()), (None, Ok(1)), "to there");
    doorbells.move_to(BAR).expect("KVM takes it");
    assert_eq!((ring(BELL, 7), bell.read()), (None, Ok(1)), "and back, enabled");
    bar.reset(|_| assert_eq!((ring(BELL, 7), bell.read()), (None, Ok(1)))).expect("a reset keeps it");
    doorbells.remove(BELL.into(), Width::Four, Some(7)).expect("KVM gives it up");
    assert_eq!((ring(BELL, 7), bell.read()), (here, Err(Errno::EAGAIN)), "gone");
    doorbells.add(BELL.into(), Width::Four, None, bell.as_fd()).expect("it is free");
    assert_eq!((ring(BELL, 8), bell.read()), (None, Ok(1)), "any value");
    drop(doorbells);
    assert_eq!((ring(BELL, 8), bell.read()), (here, Err(Errno::EAGAIN)), "dropped");
}

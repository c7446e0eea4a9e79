//! Slots of the memory map: refused, added late, read-only, taken out while a vCPU faults.
#![expect(unsafe_code, reason = "an implementor of SetMemslot passes on an unsafe contract; signals kick a vCPU")]

use super::guest::{BAR, BAR_LEN, Guest, Mode, PATTERN, Word, code, kvm_or_skip};
use super::{RETENTIONS, SLOT, bar, guest, load, mapping, one_round};
use crate::support;
use kvm_ioctls::{VcpuExit, VmFd};
use nix::errno::Errno;
use revocable_mmio::kvm::{
    ExitHandler, Handled, MemslotError, Memslots, Retention, SetMemslot, SlotMemory, WhenDisabled,
};
use revocable_mmio::{CancelToken, MapOptions, Monitor, OnDisabled, Region, Strategy};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A virtual machine that refuses changes of its memory map on request.
struct Stubborn {
    vm: Arc<VmFd>,
    refuses: AtomicBool,
    in_place: bool,
}

impl SetMemslot for Stubborn {
    unsafe fn install(&self, memory: &SlotMemory) -> std::io::Result<()> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Errno::ENOMEM.into());
        }
        // SAFETY: by this function's own contract.
        unsafe { self.vm.as_ref().install(memory) }
    }

    fn remove(&self, memory: &SlotMemory) -> std::io::Result<()> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Errno::ENOMEM.into());
        }
        self.vm.as_ref().remove(memory)
    }

    fn changes_in_place(&self) -> bool {
        self.in_place
    }
}

#[test]
fn a_memory_map_that_cannot_change_revokes_all_the_same_and_the_handler_makes_the_accesses() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let bar = bar(Strategy::Detach);
    let mut guest = Guest::new(&kvm, Mode::Real, code::LOADS_16);
    guest.ram.set(Word::COUNT, 1);
    guest.ram.set(Word::AT, 0x80);
    let vm = Arc::new(Stubborn { vm: Arc::clone(&guest.vm), refuses: AtomicBool::new(false), in_place: true });
    let slots = Memslots::new(Arc::clone(&vm));
    let mut exits = ExitHandler::new(slots.clone(), WhenDisabled::UnsupportedRequest, CancelToken::new());
    let slot = slots.add(SLOT, BAR, mapping(&bar), Retention::Remove).expect("the slot is free");

    vm.refuses.store(true, Ordering::SeqCst);
    bar.disable().expect("the memory map is not what revokes");
    assert!(slot.is_installed(), "it could not be taken out");
    vm.refuses.store(false, Ordering::SeqCst);
    assert_eq!(load(&mut guest, &mut exits), Ok(u32::MAX), "revoked all the same");
    let _ = bar.enable().expect("it comes back");
    bar.disable().expect("nothing is in the way");
    assert!(!slot.is_installed());
    vm.refuses.store(true, Ordering::SeqCst);
    bar.enable().expect("the memory map is not what restores");
    assert!(!slot.is_installed(), "it could not be put back");
    assert_eq!(load(&mut guest, &mut exits), Ok(PATTERN), "the handler makes the access");
    assert_eq!(slot.stats().degraded, 2);
    vm.refuses.store(false, Ordering::SeqCst);
}

#[test]
fn an_event_loop_that_answers_faults_can_disable_while_a_vcpu_faults() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    // The vCPU waits in a page fault that only this thread resolves, and KVM waits for the vCPU before it removes the
    // memslot. So `disable` has to resolve the fault meanwhile.
    for retention in RETENTIONS {
        let monitor = Monitor::manual().expect("a userfaultfd");
        let bar = Region::builder(BAR_LEN).strategy(Strategy::Zap).monitor(monitor.clone()).build().expect("zap");
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Wait);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        for _ in 0..20 {
            thread::scope(|scope| {
                let vcpu = scope.spawn(|| load(&mut guest, &mut exits));
                thread::sleep(Duration::from_millis(2));
                bar.disable_timeout(Duration::from_secs(10)).expect("nothing is in the way");
                bar.enable().expect("it comes back");
                let since = Instant::now();
                while !vcpu.is_finished() {
                    monitor.handle_ready(16).expect("the monitor lives");
                    assert!(
                        since.elapsed() < support::patience(Duration::from_secs(10)),
                        "{retention:?}: the vCPU hangs"
                    );
                }
                assert_eq!(vcpu.join().expect("no panic"), Ok(0));
            });
        }
    }
}

#[test]
fn a_slot_added_while_disabled_starts_revoked() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for retention in RETENTIONS {
        let bar = bar(Strategy::Detach);
        bar.disable().expect("nothing is in the way");
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::UnsupportedRequest);
        let slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        assert_eq!(load(&mut guest, &mut exits), Ok(u32::MAX), "{retention:?}");
        bar.enable().expect("it comes back");
        assert_eq!(load(&mut guest, &mut exits), Ok(PATTERN), "{retention:?}");
        drop(slot);
        let exit = guest.vcpu.run();
        assert!(matches!(exits.handle(exit), Ok(Handled::Other(Ok(VcpuExit::MmioRead(..))))), "the slot is gone");
    }
}

#[test]
fn mappings_that_would_make_a_vcpu_wait_in_the_kernel_are_refused() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let zap = bar(Strategy::Zap);
    let (_guest, slots, _) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Fail);
    for options in [MapOptions::new().on_disabled(OnDisabled::Block), MapOptions::new().accessors_only()] {
        let mapping = Arc::new(zap.map(options).expect("it maps"));
        assert!(matches!(slots.add(SLOT, BAR, mapping, Retention::Remove), Err(MemslotError::Mapping(_))));
    }
    let _first = slots.add(SLOT, BAR, mapping(&zap), Retention::Remove).expect("the slot is free");
    for (slot, gpa) in [(SLOT, 0x10_0000), (SLOT + 1, BAR), (SLOT + 1, BAR + 0x1000)] {
        let refused = slots.add(slot, gpa, mapping(&zap), Retention::Remove);
        assert!(matches!(refused, Err(MemslotError::Overlap { other: SLOT, .. })), "{refused:?}");
    }
    let refused = slots.add(SLOT + 1, 0x10_0001, mapping(&zap), Retention::Remove);
    assert!(matches!(refused, Err(MemslotError::Unaligned { .. })), "{refused:?}");
    // Guest RAM is mapped at this address. This set of slots does not know that, and KVM itself refuses.
    let refused = slots.add(SLOT + 1, 0x8000, mapping(&zap), Retention::Remove);
    assert!(matches!(&refused, Err(MemslotError::Vm { source, .. }) if source.errno == Errno::EEXIST), "{refused:?}");
    drop(refused);
    let _second = slots.add(SLOT + 1, 0x10_0000, mapping(&zap), Retention::Remove).expect("nothing was left behind");
}

#[test]
fn a_read_only_mapping_drops_the_guests_stores() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for retention in RETENTIONS {
        let bar = bar(Strategy::Detach);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::STORES_16, WhenDisabled::Fail);
        let rom = Arc::new(bar.map(MapOptions::new().read_only()).expect("it maps"));
        let _slot = slots.add(SLOT, BAR, rom, retention).expect("the slot is free");
        guest.ram.set(Word::STORED, 7);
        assert_eq!(one_round(&mut guest, &mut exits), Ok(1), "one MMIO exit");
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(PATTERN));
    }
}

//! The cost of a guest's access to its BAR: resident, faulting, disabled; with the memslot kept over ones, removed, and kept.
//!
//! `cargo bench --features kvm --bench kvm`.

#[path = "../tests/support/guest/mod.rs"]
mod guest;
#[expect(dead_code, reason = "each bench needs a part of it")]
mod support;

use guest::{BAR, BAR_LEN, Guest, Mode, PATTERN, Word, code};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VcpuExit;
use revocable_mmio::kvm::{ExitHandler, Handled, Memslot, Memslots, Retention, WhenDisabled};
use revocable_mmio::{CancelToken, FaultAround, MapOptions, OnDisabled, Region, Strategy};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Contest, Ratios, Samples, pick, skip};

/// Loads between two port exits, where the access itself is measured.
const MANY: u32 = 1000;

struct Machine {
    guest: Guest,
    exits: ExitHandler,
    bar: Region,
    _slot: Memslot,
}

impl Machine {
    fn new(strategy: Strategy, retention: Retention) -> Self {
        let kvm = guest::kvm().expect("asked before");
        let guest = Guest::new(&kvm, Mode::Real, code::LOADS_16);
        let bar =
            Region::builder(BAR_LEN).strategy(strategy).fault_around(FaultAround::Pages(1)).build().expect("a BAR");
        bar.owner().write::<u32>(0x80, PATTERN).expect("the owner's view");
        guest.ram.set(Word::AT, 0x80);
        let slots = Memslots::new(Arc::clone(&guest.vm));
        let policy = if retention == Retention::AllOnes { OnDisabled::AllOnes } else { OnDisabled::Sigbus };
        let mapping = Arc::new(bar.map(MapOptions::new().on_disabled(policy)).expect("it maps"));
        let slot = slots.add(1, BAR, mapping, retention).expect("the slot is free");
        let exits = ExitHandler::new(slots, WhenDisabled::UnsupportedRequest, CancelToken::new());
        Self { guest, exits, bar, _slot: slot }
    }

    /// Lets the guest do `count` loads. Returns how long they took, with the port exit at their end.
    fn loads(&mut self, count: u32, expect: u32) -> Duration {
        self.guest.ram.set(Word::COUNT, count);
        self.guest.ram.set(Word::VALUE, !expect);
        let since = Instant::now();
        loop {
            match self.exits.handle(self.guest.vcpu.run()) {
                Ok(Handled::Reenter) => {}
                Ok(Handled::Other(Ok(VcpuExit::IoOut(0x10, _)))) => break,
                other => panic!("unexpected: {other:?}"),
            }
        }
        let took = since.elapsed();
        assert_eq!(self.guest.ram.get(Word::VALUE), expect, "the guest's last load");
        took
    }
}

/// The same guest over a plain memslot, without this crate.
fn plain(count: u32) -> impl FnMut() -> Duration {
    let kvm = guest::kvm().expect("asked before");
    let mut guest = Guest::new(&kvm, Mode::Real, code::LOADS_16);
    let memory = memmap2::MmapOptions::new().len(BAR_LEN).map_anon().expect("64 KiB");
    let slot = kvm_userspace_memory_region {
        slot: 1,
        flags: 0,
        guest_phys_addr: BAR,
        memory_size: BAR_LEN as u64,
        userspace_addr: memory.as_ptr().expose_provenance() as u64,
    };
    #[expect(unsafe_code, reason = "KVM keeps the address")]
    // SAFETY: the closure keeps the memory, and the virtual machine, and drops them together.
    unsafe { guest.vm.set_user_memory_region(slot) }.expect("the slot is free");
    guest.ram.set(Word::AT, 0x80);
    guest.ram.set(Word::COUNT, count);
    move || {
        // The closure captures the memory too, because the guest runs in it.
        let (_memory, guest) = (&memory, &mut guest);
        let since = Instant::now();
        assert!(matches!(guest.vcpu.run(), Ok(VcpuExit::IoOut(0x10, _))));
        since.elapsed()
    }
}

/// Samples `step`, which makes `accesses` accesses and returns their time.
fn measure(samples: &mut Samples, name: &str, accesses: u32, mut step: impl FnMut() -> Duration) {
    let mut contest = Contest::new("kvm", Duration::ZERO);
    contest.each(name, 10, move |n, report| (0..n).for_each(|_| report(accesses.into(), step())));
    contest.run(pick(101, 6), samples);
    contest.criterion();
}

fn main() {
    if let Err(why) = guest::kvm() {
        return skip("all of it", &why);
    }
    let mut samples = Samples::default();
    measure(&mut samples, "plain memslot, resident", MANY, plain(MANY));
    measure(&mut samples, "plain memslot, one load and a port exit", 1, plain(1));
    for retention in [Retention::AllOnes, Retention::Remove, Retention::Keep] {
        let name = |what: &str| format!("{retention:?}, {what}");
        let mut m = Machine::new(Strategy::Detach, retention);
        measure(&mut samples, &name("resident"), MANY, || m.loads(MANY, PATTERN));
        measure(&mut samples, &name("one load and a port exit"), 1, || m.loads(1, PATTERN));
        m.bar.disable().expect("nothing is in the way");
        measure(&mut samples, &name("disabled"), 100, || m.loads(100, u32::MAX));
        m.bar.enable().expect("it comes back");
        for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
            let mut m = Machine::new(strategy, retention);
            m.loads(1, PATTERN);
            measure(&mut samples, &name(&first_load(strategy)), 1, || {
                m.bar.disable().expect("nothing is in the way");
                m.bar.enable().expect("it comes back");
                m.loads(1, PATTERN)
            });
            measure(&mut samples, &name(&cycle(strategy)), 1, || {
                m.loads(1, PATTERN);
                let since = Instant::now();
                m.bar.disable().expect("nothing is in the way");
                m.bar.enable().expect("it comes back");
                since.elapsed()
            });
        }
    }
    samples.table("a guest's access");
    conclude(&samples);
}

fn first_load(strategy: Strategy) -> String {
    format!("{strategy}: load after enable, port exit")
}

fn cycle(strategy: Strategy) -> String {
    format!("{strategy}: disable and enable, in use")
}

fn conclude(samples: &Samples) {
    let mut ratios = Ratios::default();
    let mut ratio = |name: &str, of: &str, to: &str, at_most| ratios.of(samples, name, of, to, at_most);
    // An enabled BAR costs what a plain one costs.
    ratio("kvm_resident_vs_plain", "Remove, resident", "plain memslot, resident", Some(2.0));
    ratio("kvm_disabled_vs_resident", "Remove, disabled", "Remove, resident", None);
    ratio("kvm_disabled_ones_vs_resident", "AllOnes, disabled", "AllOnes, resident", None);
    ratio("kvm_disabled_remove_vs_keep", "Remove, disabled", "Keep, disabled", None);
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
        let (first, cycle) = (first_load(strategy), cycle(strategy));
        let kept = format!("Keep, {first}");
        ratio(&format!("kvm_{strategy}_first_vs_resident_keep"), &kept, "Keep, one load and a port exit", None);
        ratio(&format!("kvm_{strategy}_first_remove_vs_keep"), &format!("Remove, {first}"), &kept, None);
        let (removed, kept) = (format!("Remove, {cycle}"), format!("Keep, {cycle}"));
        ratio(&format!("kvm_{strategy}_cycle_remove_vs_keep"), &removed, &kept, None);
    }
    ratios.print();
    assert!(!ratios.missed(), "a figure was missed");
}

//! What a guest's access to its BAR costs: resident, faulting, disabled; with the memslot removed and kept.
//!
//! `cargo bench --features kvm --bench kvm`. Ends with a table, and a line `ratio NAME VALUE` for each comparison.

#[path = "../tests/support/guest/mod.rs"]
mod guest;

use criterion::Criterion;
use guest::{BAR, BAR_LEN, Guest, Mode, PATTERN, Word, code};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VcpuExit;
use revocable_mmio::kvm::{ExitHandler, Handled, Memslot, Memslots, Retention, WhenDisabled};
use revocable_mmio::{CancelToken, FaultAround, MapOptions, Region, Strategy};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Loads between two port exits where the access itself is measured.
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
        let mapping = Arc::new(bar.map(MapOptions::new()).expect("it maps"));
        let slot = slots.add(1, BAR, mapping, retention).expect("the slot is free");
        let exits = ExitHandler::new(slots, WhenDisabled::UnsupportedRequest, CancelToken::new());
        Self { guest, exits, bar, _slot: slot }
    }

    /// Lets the guest do `count` loads, and answers how long they took, with the port exit at their end.
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
        // All of it: the guest runs in its memory.
        let (_memory, guest) = (&memory, &mut guest);
        let since = Instant::now();
        assert!(matches!(guest.vcpu.run(), Ok(VcpuExit::IoOut(0x10, _))));
        since.elapsed()
    }
}

/// Medians, in nanoseconds, by name.
#[derive(Default)]
struct Table(BTreeMap<String, f64>);

impl Table {
    /// Measures `step`, which answers how long it took and for how many accesses that was.
    fn measure(&mut self, c: &mut Criterion, name: &str, mut step: impl FnMut() -> (Duration, u32)) {
        let mut each = Vec::new();
        c.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    let (took, accesses) = step();
                    each.push(took.as_secs_f64() * 1e9 / f64::from(accesses));
                    // Criterion's own figures are for the whole step.
                    total += took;
                }
                total
            });
        });
        each.sort_by(f64::total_cmp);
        self.0.insert(name.to_owned(), each[each.len() / 2]);
    }

    fn ratio(&self, name: &str, of: &str, to: &str) -> f64 {
        let ratio = self.0[of] / self.0[to];
        println!("ratio {name} {ratio:.3}");
        ratio
    }
}

fn main() {
    if let Err(why) = guest::kvm() {
        println!("SKIP: {why}");
        return;
    }
    let short = std::env::var("REVOCABLE_BENCH").is_ok_and(|v| v == "short");
    let mut c = Criterion::default()
        .sample_size(if short { 10 } else { 30 })
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(if short { 100 } else { 600 }))
        .without_plots()
        .configure_from_args();
    let c = &mut c;
    let mut table = Table::default();

    let mut run = plain(MANY);
    table.measure(c, "plain memslot, resident", || (run(), MANY));
    let mut run = plain(1);
    table.measure(c, "plain memslot, one load and a port exit", || (run(), 1));
    for retention in [Retention::Remove, Retention::Keep] {
        let name = |what: &str| format!("{retention:?}, {what}");
        let mut m = Machine::new(Strategy::Detach, retention);
        table.measure(c, &name("resident"), || (m.loads(MANY, PATTERN), MANY));
        table.measure(c, &name("one load and a port exit"), || (m.loads(1, PATTERN), 1));
        m.bar.disable().expect("nobody is in the way");
        table.measure(c, &name("disabled"), || (m.loads(100, u32::MAX), 100));
        m.bar.enable().expect("it comes back");
        for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
            let mut m = Machine::new(strategy, retention);
            m.loads(1, PATTERN);
            table.measure(c, &name(&format!("{strategy}, first load after enable, and a port exit")), || {
                m.bar.disable().expect("nobody is in the way");
                m.bar.enable().expect("it comes back");
                (m.loads(1, PATTERN), 1)
            });
            table.measure(c, &name(&format!("{strategy}, disable and enable, page resident")), || {
                m.loads(1, PATTERN);
                let since = Instant::now();
                m.bar.disable().expect("nobody is in the way");
                m.bar.enable().expect("it comes back");
                (since.elapsed(), 1)
            });
        }
    }

    println!("\n| guest access | median |\n|---|---|");
    for (name, ns) in &table.0 {
        println!("| {name} | {ns:.0} ns |");
    }
    println!();
    let resident = table.ratio("kvm_resident_vs_plain", "Remove, resident", "plain memslot, resident");
    assert!(resident < 2.0, "an enabled BAR costs what a plain one costs, not {resident:.2} times");
    table.ratio("kvm_disabled_vs_resident", "Remove, disabled", "Remove, resident");
    table.ratio("kvm_disabled_remove_vs_keep", "Remove, disabled", "Keep, disabled");
    for strategy in ["zap", "detach", "replace"] {
        let first = format!("{strategy}, first load after enable, and a port exit");
        let cycle = format!("{strategy}, disable and enable, page resident");
        let one = "Keep, one load and a port exit";
        table.ratio(&format!("kvm_{strategy}_first_vs_resident_keep"), &format!("Keep, {first}"), one);
        table.ratio(
            &format!("kvm_{strategy}_first_remove_vs_keep"),
            &format!("Remove, {first}"),
            &format!("Keep, {first}"),
        );
        table.ratio(
            &format!("kvm_{strategy}_cycle_remove_vs_keep"),
            &format!("Remove, {cycle}"),
            &format!("Keep, {cycle}"),
        );
    }
}

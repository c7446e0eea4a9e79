//! Resets of a function and of a bus (sections i, j).

use crate::devices::*;
use crate::suite::Suite;
use crate::support::raw::{load, store};
use nix::errno::Errno;
use revocable_mmio::pci::{Bar, Bus, PciDevice, Space};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SCRATCH: u64 = 0x5a5a_5a50;
/// The offset of device control in the nvme's PCI Express capability, which has Initiate FLR.
const DEVCTL: u64 = 0x88;

pub(crate) fn function(s: &mut Suite) {
    s.section("i");
    one(s, "ivshmem below a root port (bus reset): ", BAR2, 0x100, true, |s| {
        ivshmem_builder(s).command(0x0107).on_reset(|_, _| Ok(())).build()
    });
    // The reset clears the register of the recorded device.
    one(s, "ivshmem BAR0 IntrMask register (bus reset): ", BAR0, 0, true, |s| {
        let clear = |device: &PciDevice, _| {
            device.owner(BAR0).map_or(Ok(()), |bar| bar.write(0, 0u64).map_err(std::io::Error::other))
        };
        ivshmem_builder(s).command(0x0107).on_reset(clear).build()
    });
    one(s, "e1000e (pm reset; RDBAL scratch): ", BAR0, 0x2800, true, |s| Ok(set_command(e1000e(s), 0x0107)));
    one(s, "nvme (FLR; AQA scratch): ", BAR0, 0x24, true, |s| Ok(set_command(nvme(s), 0x0107)));
    one(s, "ivshmem on the root bus (no reset method): ", BAR2, 0x100, false, |s| {
        ivshmem_builder(s).command(0x0107).build()
    });
    one(s, "function 1 of two on one bus: ", BAR2, 0x100, false, |s| ivshmem_builder(s).command(0x0107).build());
    s.prefix("");
    under_load(s);
    through_config(s);
}

fn set_command(device: PciDevice, command: u16) -> PciDevice {
    pwrite(&device, Space::Config, COMMAND, &command.to_le_bytes());
    device
}

fn one(
    s: &mut Suite,
    name: &str,
    bar: Space,
    offset: usize,
    resets: bool,
    build: impl FnOnce(&Suite) -> Result<PciDevice, revocable_mmio::pci::PciError>,
) {
    let device = build(s).expect("a device");
    s.prefix(name);
    let mapping = map(&device, bar);
    let (base, at) = (mapping.as_ptr(), mapping.as_ptr().wrapping_add(offset));
    let stored = store(at, 4, SCRATCH).map_or_else(short, |()| "ok".into());
    s.row("before: store/load, COMMAND", format!("{stored} {}, {}", value(load(at, 4)), command(&device)));
    let before = zaps(&device, bar);
    s.row("VFIO_DEVICE_RESET", zero(device.reset()));
    s.row("COMMAND after", command(&device));
    let zap = zapped(before, zaps(&device, bar));
    s.row("load after, same mapping", format!("{} ({zap})", loaded(load(at, 4), base)));
    if !resets {
        return;
    }
    off(&device);
    s.row("reset while off", zero(device.reset()));
    s.row("  COMMAND after", command(&device));
    s.row("  load after", loaded(load(at, 4), base));
    on(&device);
    s.row("  on: load", loaded(load(at, 4), base));
}

/// Makes resets of 30 ms while another thread calls `access`, and describes them in the recording's words.
fn blocked_by(
    device: &PciDevice,
    reset: impl Fn(&PciDevice) -> bool,
    access: impl Fn() -> bool + Sync,
    name: &str,
) -> String {
    const MOST_OF_IT: u64 = 25_000_000;
    let (stop, refused, longest) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let ns = |since: Instant| u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut shortest = u64::MAX;
    let mut failed = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let since = Instant::now();
                refused.fetch_add(u64::from(!access()), Ordering::Relaxed);
                longest.fetch_max(ns(since), Ordering::Relaxed);
            }
        });
        // On a busy machine the other thread may not run right when a reset begins. Then it is tried again.
        for nth in 0..60 {
            if nth >= 4 && longest.load(Ordering::Relaxed) >= MOST_OF_IT {
                break;
            }
            thread::sleep(Duration::from_millis(5));
            let since = Instant::now();
            failed += u32::from(!reset(device));
            shortest = shortest.min(ns(since));
        }
        stop.store(true, Ordering::Relaxed);
    });
    // The callback sleeps for 30 ms. An access that began right at its start took nearly as long.
    let blocks = longest.load(Ordering::Relaxed) >= MOST_OF_IT && shortest >= 30_000_000;
    let blocked = if blocks {
        "longest access as long as the shortest reset (accesses block rather than fault)"
    } else {
        "did not block"
    };
    format!("resets failed {failed} of 4; refused accesses ({name}): {}; {blocked}", refused.load(Ordering::Relaxed))
}

fn slow(device: &PciDevice) -> std::io::Result<()> {
    assert!(device.command() & MEMORY != 0, "a reset leaves the register alone");
    thread::sleep(Duration::from_millis(30));
    Ok(())
}

fn under_load(s: &mut Suite) {
    let device = ivshmem_builder(s).on_reset(|device, _| slow(device)).build().expect("a device");
    let mapping = map(&device, BAR2);
    let base = mapping.as_ptr().expose_provenance();
    let loads = || load(std::ptr::with_exposed_provenance(base), 8).is_ok();
    let reset = |device: &PciDevice| device.reset().is_ok();
    s.row(
        "bus reset (ivshmem) while another thread loads from the mapping",
        blocked_by(&device, reset, loads, "SIGBUS"),
    );
    let preads = || device.read(BAR2, 0, &mut [0; 8][..]).is_ok();
    s.row("bus reset (ivshmem) while another thread preads the BAR", blocked_by(&device, reset, preads, "EIO"));
    let accessor = || mapping.read::<u64>(0).is_ok();
    let expected = "resets failed 0 of 4; refused accesses (Err): 0; longest access as long as the shortest reset (accesses block rather than fault)";
    s.more("reset while another thread uses the accessors", blocked_by(&device, reset, accessor, "Err"), expected);
    let pwrites = || device.write(BAR2, 0, &[0u8; 8][..]).is_ok();
    s.more("reset while another thread pwrites", blocked_by(&device, reset, pwrites, "Err"), expected);
    let flr = PciDevice::builder(0x1b36, 0x10).command(0x0103).bar(0, Bar::memory(16 << 10).wide()).express(0x80);
    let flr = flr.strategy(s.strategy).on_reset(|device, _| slow(device)).build().expect("an nvme");
    let mapping = map(&flr, BAR0);
    let base = mapping.as_ptr().expose_provenance();
    let loads = || load(std::ptr::with_exposed_provenance(base), 8).is_ok();
    let through_config = |device: &PciDevice| device.write(Space::Config, DEVCTL, &0x8000u16.to_le_bytes()[..]).is_ok();
    s.row("FLR (nvme) while another thread loads from the mapping", blocked_by(&flr, through_config, loads, "SIGBUS"));
}

fn through_config(s: &mut Suite) {
    let device = nvme(s);
    let mapping = map(&device, BAR0);
    let (base, at) = (mapping.as_ptr(), mapping.as_ptr().wrapping_add(0x24));
    store(at, 4, 0x70007).expect("enabled");
    let devcap = u32::from_le_bytes(config(&device, 0x84));
    s.row("nvme: DEVCAP FLR bit, scratch before", format!("{}, {}", devcap >> 28 & 1, value(load(at, 4))));
    let before = zaps(&device, BAR0);
    let flr = || pwrite(&device, Space::Config, DEVCTL, &0x8000u16.to_le_bytes());
    let step = "write Initiate FLR to DEVCTL through config space (2 bytes)";
    s.row(step, flr());
    s.prefix(&format!("{step} › "));
    let zap = if zaps(&device, BAR0) > before { "minor faults 1" } else { "minor faults 0" };
    s.row("load of the scratch register after", format!("{} ({zap})", loaded(load(at, 4), base)));
    s.row("COMMAND after", command(&device));
    let control: [u8; 2] = config(&device, DEVCTL);
    s.row("DEVCTL reads", format!("FLR bit {}", control[1] >> 7));
    off(&device);
    let outcome = format!("{}, {}, {}", flr(), command(&device), load(at, 4).map_or_else(short, |_| "ok".into()));
    s.row("FLR write while off: rc, COMMAND, load", outcome);
    on(&device);
    s.row("then on: load", loaded(load(at, 4), base));
    s.prefix("");
    let before = zaps(&device, BAR0);
    s.more("byte write of DEVCTL's high byte", pwrite(&device, Space::Config, DEVCTL + 1, &[0x80]), "1");
    s.more("that resets too", (zaps(&device, BAR0) - before).to_string(), "1");
    let before = zaps(&device, BAR0);
    s.more("DEVCTL written without FLR", pwrite(&device, Space::Config, DEVCTL, &[0x10, 0x28]), "2");
    s.more("that resets nothing", (zaps(&device, BAR0) - before).to_string(), "0");
    let failing = ivshmem_builder(s).on_reset(|_, _| Err(Errno::ETIMEDOUT.into())).build().expect("a device");
    s.more("a reset that fails", zero(failing.reset()), "-1 ETIMEDOUT");
    let again = map(&failing, BAR2);
    s.more("load after a reset that failed", value(load(again.as_ptr(), 8)), "0x0");
}

fn function_of(s: &Suite, name: &str, byte: u64) -> (PciDevice, revocable_mmio::Mapping) {
    let device = ivshmem_builder(s).name(name).build().expect("a device");
    let mapping = map(&device, BAR2);
    store(mapping.as_ptr(), 8, byte).expect("enabled");
    (device, mapping)
}

pub(crate) fn bus(s: &mut Suite) {
    s.section("j");
    let reset = |bus: &Bus| zero(bus.hot_reset(|_| true, |_| Ok(())));
    let (device, mapping) = function_of(s, "01:00.0", 0x10c);
    let base = mapping.as_ptr();
    let bus = Bus::new([device.clone()]);
    s.prefix("single: ");
    let before = zaps(&device, BAR2);
    s.row("correct group fd", reset(&bus));
    let zap = if zaps(&device, BAR2) > before { 1 } else { 0 };
    s.row(
        "correct group fd › load after; COMMAND",
        format!("{} (minor faults {zap}); {}", loaded(load(base, 8), base), command(&device)),
    );
    off(&device);
    let outcome = reset(&bus);
    s.row(
        "hot reset while off: rc, COMMAND, load",
        format!("{outcome} {} {}", command(&device), short(load(base, 8).expect_err("off"))),
    );
    on(&device);
    s.row("hot reset while off: rc, COMMAND, load › on: load", loaded(load(base, 8), base));
    let before = zaps(&device, BAR2);
    s.row("another device's group fd only", zero(bus.hot_reset(|_| false, |_| Ok(()))));
    s.row("count 0 (group interface)", zero(bus.hot_reset(|_| false, |_| panic!("not owned"))));
    let zap = if zaps(&device, BAR2) > before { "yes" } else { "no" };
    s.row("count 0 (group interface) › was it zapped by the failed call", zap);
    s.prefix("");
    s.row("root-bus device: hot reset", reset(&Bus::new([])));

    let (f0, m0) = function_of(s, "03:00.0", 0xa0);
    let (f1, m1) = function_of(s, "03:00.1", 0xb0);
    let (b0, b1) = (m0.as_ptr(), m1.as_ptr());
    let both = Bus::new([f1.clone(), f0.clone()]);
    s.row("two: only 00.0 opened, group fd given: hot reset", reset(&both));
    s.row("two: only 00.0 opened, group fd given: hot reset › VFIO_DEVICE_RESET on it", zero(f0.reset()));
    let before = [&f0, &f1].map(|f| zaps(f, BAR2));
    s.row("two: both opened: hot reset through 00.0", reset(&both));
    for (f, base, was, name) in [(&f0, b0, before[0], "00.0"), (&f1, b1, before[1], "00.1")] {
        let zap = zaps(f, BAR2) - was;
        let outcome = format!("{} (minor faults {zap}) COMMAND {}", loaded(load(base, 8), base), command(f));
        s.row(&format!("two: both opened: hot reset through 00.0 › {name} load after"), outcome);
    }
    off(&f1);
    s.row("two: 00.1 off, hot reset through 00.0", reset(&both));
    let refused = show(load(b1, 8).expect_err("off"), b1);
    let outcome = format!("{}; {refused}; {}", value(load(b0, 8)), command(&f1));
    s.row("two: 00.1 off, hot reset through 00.0 › 00.0 load; 00.1 load; 00.1 COMMAND", outcome);
    on(&f1);
    s.row("two: 00.1 off, hot reset through 00.0 › 00.1 on: load", value(load(b1, 8)));
    off(&f0);
    let outcome = format!(
        "{}; {} {}",
        reset(&both),
        short(load(b0, 8).expect_err("off")),
        load(b1, 8).map_or_else(short, |_| "ok".into())
    );
    s.row("two: hot reset through 00.1 while 00.0 off: rc; 00.0, 00.1 loads", outcome);
    on(&f0);
    s.row("two: count 0", zero(both.hot_reset(|_| false, |_| Ok(()))));
    s.row("two: unrelated group fd only", zero(both.hot_reset(|f| f.name() == "05:00.0", |_| Ok(()))));
    s.row(
        "two: right + unrelated",
        zero(both.hot_reset(|f| f.name().starts_with("03:00.") || f.name() == "05:00.0", |_| Ok(()))),
    );
    s.more("two: one of them owned", zero(both.hot_reset(|f| f.name() == "03:00.0", |_| Ok(()))), "-1 EINVAL");
    let at = b1.expose_provenance();
    let loads = || load(std::ptr::with_exposed_provenance(at), 8).is_ok();
    let slowly = |_: &PciDevice| {
        let pause = |_: &[PciDevice]| {
            thread::sleep(Duration::from_millis(30));
            Ok(())
        };
        both.hot_reset(|_| true, pause).is_ok()
    };
    let outcome = blocked_by(&f0, slowly, loads, "SIGBUS");
    let outcome = outcome.replace("resets failed", "failed resets").replace("refused accesses (SIGBUS): ", "SIGBUS ");
    let outcome =
        outcome.replace("longest access as", "longest load as").replace(" (accesses block rather than fault)", "");
    s.row("two: loads from 00.1's mapping by another thread while 00.0 is hot-reset", outcome);
    let preads = || f1.read(BAR2, 0, &mut [0; 8][..]).is_ok();
    let expected = "resets failed 0 of 4; refused accesses (EIO): 0; longest access as long as the shortest reset (accesses block rather than fault)";
    s.more("two: preads of 00.1 while 00.0 is hot-reset", blocked_by(&f0, slowly, preads, "EIO"), expected);
    drop(m1);
    s.row("two: 00.1 closed again: hot reset through 00.0", reset(&both));
    s.row("two, 00.1 unbound: hot reset through 00.0", reset(&Bus::new([f0.clone()]).with_foreign("03:00.1")));
    s.row("rebind 00.1 › hot reset", reset(&both));

    // A function is pinned, and the others are left alone.
    let guard =
        f1.region(BAR2).expect("memory").pin(0..4096, revocable_mmio::fault::FaultFlags::NOWAIT).expect("enabled");
    s.more("two: 00.1 pinned", reset(&both), "-1 EBUSY");
    s.more("two: 00.1 pinned › 00.0 load", value(load(b0, 8)), "0xa0");
    drop(guard);
    s.more("two: unpinned", reset(&both), "0");

    let nic = e1000e(s);
    let m = map(&nic, BAR0);
    let before = zaps(&nic, BAR0);
    let bus = Bus::new([nic.clone()]);
    s.row("e1000e: hot reset", reset(&bus));
    let zap = zaps(&nic, BAR0) - before;
    s.row(
        "e1000e: hot reset › load after; COMMAND",
        format!("{} (faults {zap}); {}", load(m.as_ptr(), 4).map_or_else(short, |_| "ok".into()), command(&nic)),
    );
    pwrite(&nic, Space::Config, 0xcc, &[3, 0]);
    s.more("e1000e in D3hot: hot reset", reset(&bus), "0");
    s.more("e1000e out of D3hot by that: load", value(load(m.as_ptr(), 4)), "0x0");
    s.row("nvme: hot reset", reset(&Bus::new([nvme(s)])));
}

//! Mappings while enabled, disabled and enabled again: loads, stores, system calls (sections a, b, c).

use crate::devices::*;
use crate::suite::Suite;
use crate::support::raw::{self, load, retried, store};
use crate::{dispositions, syscalls};
use nix::libc;
use revocable_mmio::MapOptions;
use revocable_mmio::pci::{MappingPart, PciDevice, Space};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) fn enabled(s: &mut Suite) {
    s.section("a");
    let device = ivshmem(s);
    s.row("COMMAND after open", command(&device));
    let whole = device.map(BAR2, MapOptions::new());
    s.row("mmap whole BAR2 RW, MAP_SHARED", whole.as_ref().map_or("-1", |_| "ok"));
    let whole = whole.expect("a mapping");
    let base = whole.as_ptr();
    let aligned = if base.addr() % (2 << 20) == 0 { "yes" } else { "no" };
    s.row("address 2 MiB aligned without asking", aligned);
    s.row("first store 8 @0", done(store(base, 8, 0x1122_3344_5566_7788), base));
    s.row("load 8 @0", loaded(load(base, 8), base));
    let parts = [(1, 1), (2, 2), (4, 4)].map(|(at, width)| value(load(base.wrapping_add(at), width)));
    s.row("load 1 @1 / 2 @2 / 4 @4", parts.join(" / "));
    let across = base.wrapping_add(0xffc);
    let stored = done(store(across, 8, 0xa1a2_a3a4_a5a6_a7a8), base);
    s.row("unaligned store+load 8 @0xffc (crosses a page)", format!("{stored} {}", loaded(load(across, 8), base)));
    let mut eight = [0; 8];
    let read = rc(device.read(BAR2, 0, &mut eight[..]));
    s.row("pread 8 @0 of the region", format!("{read} {:#x}", u64::from_le_bytes(eight)));
    let written = pwrite(&device, BAR2, 4096, &0x99u64.to_le_bytes());
    let there = loaded(load(base.wrapping_add(4096), 8), base);
    s.row("pwrite 8 @4096, then load there", format!("{written}; {there}"));
    let read_only = device.map(BAR2, MapOptions::new().read_only()).expect("a mapping");
    let at = read_only.as_ptr();
    let stored = show(store(at, 8, 1).expect_err("read-only"), at);
    s.row("second mapping, PROT_READ: load / store", format!("{} / {stored}", value(load(at, 8))));

    // The crate has no option for such a mapping, but a part can lose its rights.
    let (shut, open) = (crate::parts::protect(at, 4096, libc::PROT_NONE), load(at, 8));
    let then = format!("{} {}", crate::parts::protect(at, 4096, libc::PROT_READ), value(load(at, 8)));
    assert_eq!(shut, "0");
    s.row(
        "mmap PROT_NONE then load; mprotect RW then load",
        format!("{}; {then}", show(open.expect_err("no access"), at)),
    );

    syscalls::enabled(s, &device, &whole);
    syscalls::advices(s, &whole);

    let old = raw::exchange_add(base.wrapping_add(8192), 0);
    store(base.wrapping_add(8192), 8, 8).expect("enabled");
    let found = raw::compare_exchange(base.wrapping_add(8192), 8, 9);
    assert_eq!(old, Ok(0), "nothing was there before");
    s.row("lock xadd / cmpxchg @8192", value(found));

    drop(device);
    s.row("close(device fd), mapping stays: load", loaded(load(base, 8), base));
}

/// Every kind of access to a mapping that is revoked.
pub(crate) fn disabled(s: &mut Suite) {
    s.section("b");
    let device = ivshmem(s);
    let whole = map(&device, BAR2);
    let base = whole.as_ptr();
    for at in [0, 4096, BIG - 8] {
        store(base.wrapping_add(at), 8, 0x1111_2222_3333_4444).expect("enabled");
    }
    s.row("touched @0, @4096, @end-8; COMMAND", command(&device));
    s.row("pwrite COMMAND &= ~2 (2 bytes)", off(&device));
    s.row("COMMAND reads", command(&device));
    for width in [2, 4, 8] {
        s.row(&format!("load {width} @0"), loaded(load(base, width), base));
    }
    s.more("load 1 @0", loaded(load(base, 1), base), "SIGBUS BUS_ADRERR(2) si_addr=base+0x0");
    for width in [1, 2, 4, 8] {
        s.row(&format!("store {width} @8"), done(store(base.wrapping_add(8), width, 0), base));
    }
    let at = |offset: usize| base.wrapping_add(offset);
    s.row("load 4 @0x123c (page touched before)", loaded(load(at(0x123c), 4), base));
    s.row("load 4 @0x5004 (page never touched)", loaded(load(at(0x5004), 4), base));
    s.row("load 8 @end-8", loaded(load(at(BIG - 8), 8), base));
    s.row("load 8 @0xffc, across a page edge", loaded(load(at(0xffc), 8), base));
    s.row("store 8 @0xffc, across a page edge", done(store(at(0xffc), 8, 0), base));
    s.row("lock xadd @0", loaded(raw::exchange_add(base, 1), base));
    let compared = loaded(raw::compare_exchange(at(0x40), 0, 1), base);
    s.more("lock cmpxchg @0x40", compared, "SIGBUS BUS_ADRERR(2) si_addr=base+0x40");
    s.row("instruction fetch @0 (mapping is not PROT_EXEC)", done(raw::execute(base), base));
    s.row("rep movsb 32 bytes from 0xff0", done(raw::copy_from(at(0xff0), 32), base));
    // The registers that the signal carries.
    load(base, 8).expect_err("revoked");
    let raw::Registers { lsb, trap, error } = raw::registers();
    s.more("si_addr_lsb, trap number and error code of a load", format!("{lsb} {trap} {error}"), "0 14 4");
    store(base, 8, 0).expect_err("revoked");
    s.more("error code of a store", raw::registers().error.to_string(), "6");

    syscalls::disabled(s, &device, &whole);

    s.row("pread config space (vendor id)", format!("4 {:#x}", u32::from_le_bytes(config(&device, 0))));
    let info = device.info(BAR2);
    let flags = u32::from(info.read) | u32::from(info.write) << 1 | u32::from(info.map) << 2;
    s.row("VFIO_DEVICE_GET_REGION_INFO of BAR2: flags", format!("{flags:#x} size {:#x}", info.size));
    s.row("pread BAR2 len 0", pread(&device, BAR2, 0, 0));
    for (row, how) in [
        ("load in a child, SIGBUS default", "default"),
        ("load in a child, SIGBUS blocked, default", "blocked"),
        ("load in a child, SIGBUS ignored", "ignored"),
        ("load in a child, handler installed but SIGBUS blocked", "handler blocked"),
    ] {
        s.row(row, dispositions::run(how));
    }
    s.row("disable once more (already off): pwrite", off(&device));
    let enabled = on(&device);
    s.row("store value survives? enable, load @0", format!("{enabled} {}", loaded(load(base, 8), base)));
}

pub(crate) fn enabled_again(s: &mut Suite) {
    s.section("c");
    let device = ivshmem(s);
    let whole = map(&device, BAR2);
    let base = whole.as_ptr();
    let at = |offset: usize| base.wrapping_add(offset);
    store(base, 8, 0xc0ffee).expect("enabled");
    store(at(0x3000), 8, 0xbeef).expect("enabled");
    off(&device);
    s.row("off: load", loaded(load(base, 8), base));
    s.row("off: store 0xbad (caught)", done(store(base, 8, 0xbad), base));
    s.row("pwrite COMMAND with bit 1 set", on(&device));
    s.row("load @0, same mapping", loaded(load(base, 8), base));
    s.row("load @0x3000", loaded(load(at(0x3000), 8), base));
    let stored = done(store(base, 8, 0x77), base);
    s.row("store+load", format!("{stored} {}", loaded(load(base, 8), base)));
    s.row("pread region", pread(&device, BAR2, 0, 8));
    let mut surprises = 0;
    for round in 0..300u64 {
        let place = at(0x4000 + 8 * round as usize);
        store(place, 8, round).expect("enabled");
        off(&device);
        surprises += u32::from(load(place, 8).is_ok()) + u32::from(store(place, 8, 0).is_ok());
        on(&device);
        surprises += u32::from(load(place, 8) != Ok(round));
    }
    s.row("300 off/on cycles, each checked: surprises", surprises.to_string());
    handlers(s, &device, base);

    // Transfers between the BAR and its own mapping.
    store(at(0x100000), 8, 0x1001001).expect("enabled");
    off(&device);
    on(&device);
    let mut part = MappingPart::new(&whole, 0x200000..0x200008);
    let read = rc(device.read(BAR2, 0x100000, &mut part));
    let copied = load(at(0x200000), 8).expect("enabled");
    s.row(
        "pread of the BAR region into the same BAR's mapping (on, page not faulted in)",
        format!("{read}; copied {copied:#x}"),
    );
    let part = MappingPart::new(&whole, 0x300000..0x300008);
    let row = "pwrite to the BAR region from the same BAR's mapping (on, page not faulted in)";
    s.row(row, rc(device.write(BAR2, 0, &part)));
    store(base, 8, 0x77).expect("enabled");
    // Two words in the BAR with values for COMMAND, as buffers of the transfers below.
    store(at(0x400000), 2, 0x0101).expect("enabled");
    store(at(0x400008), 2, 0x0103).expect("enabled");
    off(&device);
    let read = rc(device.read(BAR2, 0, &mut MappingPart::new(&whole, 0..8)));
    let written = rc(device.write(BAR2, 0, &MappingPart::new(&whole, 0..8)));
    s.row("the two while off", format!("{read}, {written}"));
    on(&device);
    let written = rc(device.write(Space::Config, COMMAND, &MappingPart::new(&whole, 0x400000..0x400002)));
    let then = load(base, 8).map_or_else(short, |_| "ok".into());
    s.row(
        "the disabling write itself, its source buffer in the BAR",
        format!("{written}; COMMAND {}; load {then}", command(&device)),
    );
    let written = rc(device.write(Space::Config, COMMAND, &MappingPart::new(&whole, 0x400008..0x40000a)));
    s.row(
        "the enabling write, its source buffer in the (revoked) BAR",
        format!("{written}; COMMAND {}", command(&device)),
    );
    let read = rc(device.read(Space::Config, 0, &mut MappingPart::new(&whole, 0x500000..0x500004)));
    let refused = pwrite(&device, BAR2, 0, &0xbadu64.to_le_bytes());
    on(&device);
    let row = "config read into the BAR while off: rc; then on: was anything stored";
    s.row(row, format!("{read}; {}", value(load(at(0x500000), 4))));
    let row = "contents written by pwrite while off are refused, value after on";
    s.row(row, format!("pwrite {refused}; value {}", value(load(base, 8))));
}

/// Signal handlers after which the access is tried again.
fn handlers(s: &mut Suite, device: &PciDevice, base: *mut u8) {
    off(device);
    let ran = AtomicU32::new(0);
    let again = || {
        ran.fetch_add(1, Ordering::Relaxed);
    };
    let is_often = || ran.load(Ordering::Relaxed) > 10;
    let since = Instant::now();
    let (result, often) = thread::scope(|scope| {
        let enabler = scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            // On a machine that has other work, it takes longer.
            while !is_often() && since.elapsed() < crate::support::patience(Duration::from_secs(10)) {
                thread::sleep(Duration::from_millis(1));
            }
            let often = is_often();
            on(device);
            often
        });
        let (result, _) = retried(again, || load(base, 8));
        let waited = since.elapsed() >= Duration::from_millis(190);
        (result, enabler.join().expect("the enabler") && waited)
    });
    let often = if often { "again and again (>10 times)" } else { "too seldom" };
    let outcome = format!("handler ran {often}, then the load completed with {}", loaded(result, base));
    s.row("handler that returns without fixing: load while off 200 ms, then on", outcome);

    off(device);
    let enable = || drop(on(device));
    let (result, times) = retried(enable, || load(base, 8));
    let outcome = format!("{}, handler ran {times} time", loaded(result, base));
    s.row("handler that sets the memory bit itself and returns: load", outcome);

    off(device);
    let over = || crate::parts::map_over(base);
    let (result, times) = retried(over, || load(base, 8));
    let outcome = format!("{}, handler ran {times} time", loaded(result, base));
    let step = "handler that maps an anonymous page over the address and returns: load";
    s.row(step, outcome);
    on(device);
    let next = load(base.wrapping_add(4096), 8).map_or_else(short, |_| "ok".into());
    let row = format!("{step} › on again: load there (still the anonymous page) / the next page");
    s.row(&row, format!("{} / {next}", value(load(base, 8))));
}

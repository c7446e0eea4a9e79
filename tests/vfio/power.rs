//! Power states, low power, virtual functions (sections l, r).

use crate::devices::*;
use crate::suite::Suite;
use crate::support::raw::{load, store};
use nix::sys::eventfd::EventFd;
use revocable_mmio::MapOptions;
use revocable_mmio::pci::{Bar, Bus, PciDevice, Space, Width};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

const PMCSR: u64 = 0xcc;
const RDBAL: usize = 0x2800;

fn pmcsr(device: &PciDevice) -> String {
    format!("{:#06x}", u16::from_le_bytes(config(device, PMCSR)))
}

fn go(device: &PciDevice, state: u16) -> String {
    pwrite(device, Space::Config, PMCSR, &state.to_le_bytes())
}

fn short_load(at: *const u8) -> String {
    load(at, 4).map_or_else(short, |_| "ok".into())
}

pub(crate) fn states(s: &mut Suite) {
    s.section("l");
    let device = e1000e(s);
    let (m0, m3) = (map(&device, BAR0), map(&device, BAR3));
    let (base, at) = (m0.as_ptr(), m0.as_ptr().wrapping_add(RDBAL));
    let capability: [u8; 1] = config(&device, 0x34);
    s.row("e1000e: PM capability, PMCSR", format!("{:#x} {} (NoSoftRst 0)", capability[0], pmcsr(&device)));
    store(at, 4, 0x5a5a_5a50).expect("enabled");
    s.row("D0: RDBAL scratch", value(load(at, 4)));
    for state in [1, 2] {
        let step = format!("PMCSR := D{state}");
        let written = go(&device, state);
        s.row(&step, format!("{written}; PMCSR reads {}; COMMAND {}", pmcsr(&device), command(&device)));
        s.prefix(&format!("{step} › "));
        s.row("load", loaded(load(at, 4), base));
        s.row("store", store(at, 4, 0x5a5a_5a50).map_or_else(short, |()| "ok".into()));
        s.row("load of BAR3", short_load(m3.as_ptr()));
        s.row(
            "pread BAR0 / pwrite BAR0",
            format!("{} / {}", pread(&device, BAR0, 0, 4), pwrite(&device, BAR0, 0, &[0; 4])),
        );
        let written = go(&device, 0);
        s.row("PMCSR := D0", format!("{written}; PMCSR {} COMMAND {}", pmcsr(&device), command(&device)));
        s.prefix("");
    }
    hot(s, &device, base, m3.as_ptr());
    low_power(s, "e1000e VFIO_DEVICE_FEATURE LOW_POWER_ENTRY", &e1000e(s), BAR0, 0x10d3_8086);
    low_power(s, "ivshmem (no PM cap) VFIO_DEVICE_FEATURE LOW_POWER_ENTRY", &ivshmem(s), BAR2, 0x1110_1af4);
}

fn hot(s: &mut Suite, device: &PciDevice, base: *mut u8, base3: *mut u8) {
    let at = base.wrapping_add(RDBAL);
    let kick = EventFd::new().expect("an eventfd");
    device.add_ioeventfd(0, 0x3000, Width::Four, 0x77, kick.as_fd()).expect("an ioeventfd");
    let written = go(device, 3);
    s.row("PMCSR := D3hot", format!("{written}; PMCSR reads {}; COMMAND {}", pmcsr(device), command(device)));
    s.prefix("PMCSR := D3hot › ");
    s.row("load", loaded(load(at, 4), base));
    s.row("store", store(at, 4, 0).map_or_else(|met| show(met, base), |()| "ok".into()));
    s.row("load of BAR3", short_load(base3));
    s.row("pread BAR0 / pwrite BAR0", format!("{} / {}", pread(device, BAR0, 0, 4), pwrite(device, BAR0, 0, &[0; 4])));
    s.row("config read in D3 (vendor id)", format!("{:#x}", u32::from_le_bytes(config(device, 0))));
    off(device);
    on(device);
    s.row("COMMAND memory off then on while in D3: load", short_load(at));
    let mapped = device.map(BAR0, MapOptions::new());
    let outcome =
        format!("{}; {}", if mapped.is_ok() { "ok" } else { "-1" }, short_load(mapped.expect("a mapping").as_ptr()));
    s.row("mmap in D3; load", outcome);
    kick.write(1).expect("an eventfd");
    thread::sleep(Duration::from_millis(50));
    let target = device.owner(BAR0).expect("memory").read::<u32>(0x3000).expect("the owner's view");
    s.row("IOEVENTFD kick in D3 (is it written?)", target.to_string());
    s.more("D3hot -> D1", go(device, 1), "2");
    s.more("D3hot -> D1 is ignored: PMCSR", pmcsr(device), "0x0003");
    let written = go(device, 0);
    s.row("PMCSR := D0", format!("{written}; PMCSR {} COMMAND {}", pmcsr(device), command(device)));
    s.row("load after (no COMMAND write)", loaded(load(at, 4), base));
    let target = device.owner(BAR0).expect("memory").read::<u32>(0x3000).expect("the owner's view");
    s.row("ioeventfd target after", format!("{target:#x}"));
    s.prefix("");
    go(device, 3);
    let written = pwrite(device, Space::Config, PMCSR, &[0]);
    s.row("byte write of PMCSR := 0 (D0) from D3: rc, load", format!("{written} {}", short_load(at)));
    s.more("byte write of PMCSR's high byte in D0", pwrite(device, Space::Config, PMCSR + 1, &[3]), "1");
    s.more("that is no change of state: load", short_load(at), "ok");
    go(device, 3);
    let reset = zero(device.reset());
    let outcome = format!("{reset}; PMCSR {}; COMMAND {}; load {}", pmcsr(device), command(device), short_load(at));
    s.row("VFIO_DEVICE_RESET in D3hot", outcome);
    off(device);
    go(device, 3);
    go(device, 0);
    s.row("memory off before D3, D0 after: COMMAND, load", format!("{} {}", command(device), short_load(at)));
    on(device);
    s.row("memory off before D3, D0 after: COMMAND, load › then on: load", short_load(at));
}

fn low_power(s: &mut Suite, name: &str, device: &PciDevice, bar: Space, id: u32) {
    let mapping = map(device, bar);
    let base = mapping.as_ptr();
    s.row(name, zero(device.enter_low_power()));
    s.prefix(&format!("{name} › "));
    s.row("again", zero(device.enter_low_power()));
    s.row("load", loaded(load(base, 4), base));
    s.row("store", store(base, 4, 0).map_or_else(|met| show(met, base), |()| "ok".into()));
    s.row("pread BAR", pread(device, bar, 0, 4));
    s.row("(so the host state after the pread) load", short_load(base));
    assert_eq!(u32::from_le_bytes(config(device, 0)), id);
    s.row("config read", format!("{id:#x}"));
    let written = on(device);
    s.row("COMMAND write (memory on)", format!("{written}; load {}", short_load(base)));
    off(device);
    s.more("memory off in low power: pread BAR", pread(device, bar, 0, 4), "-1 EIO");
    on(device);
    s.more("and on: pread BAR", pread(device, bar, 0, 4), "4");
    s.more("and on: load", short_load(base), "SIGBUS");
    let left = zero(device.exit_low_power());
    s.row("LOW_POWER_EXIT", format!("{left}; load {}", short_load(base)));
    s.row("LOW_POWER_EXIT again", zero(device.exit_low_power()));
    device.enter_low_power().expect("not in it");
    off(device);
    device.exit_low_power().expect("memory is off anyway");
    s.more("memory off in low power, then out of it: load", short_load(base), "SIGBUS");
    on(device);
    s.more("and on: load (2)", short_load(base), "ok");
    s.prefix("");
}

pub(crate) fn virtual_functions(s: &mut Suite) {
    s.section("r");
    for (suffix, of_pf, of_vf) in [("", 0x10400, 0), (" (2)", 0x800c_4481u64, 0x800c_4481)] {
        let build = |vf: bool| {
            let builder = PciDevice::builder(0x8086, 0x10c9).bar(0, Bar::memory(16 << 10)).strategy(s.strategy);
            let builder = if vf {
                builder.name("VF").virtual_function()
            } else {
                builder.name("PF").command(0x0103).on_reset(|_, _| Ok(()))
            };
            let device = builder.build().expect("a device");
            device.owner(BAR0).expect("memory").write(8, if vf { of_vf } else { of_pf }).expect("the owner's view");
            device
        };
        let (pf, vf) = (build(false), build(true));
        let (pm, vm) = (map(&pf, BAR0), map(&vf, BAR0));
        let (base, at) = (pm.as_ptr(), vm.as_ptr().wrapping_add(8));
        let row = |s: &mut Suite, step: &str, outcome: String| s.row(&format!("{step}{suffix}"), outcome);
        row(s, "VF COMMAND on open", command(&vf));
        row(s, "VF load @8 (VS)", loaded(load(at, 8), vm.as_ptr()));
        let before = zaps(&vf, BAR0);
        off(&vf);
        row(s, "VF memory bit cleared: COMMAND", command(&vf));
        let zap = zaps(&vf, BAR0) - before;
        let outcome = if load(at, 8).is_ok() { format!("ok 0x0 ({zap})") } else { "refused".into() };
        row(s, "VF memory bit cleared: COMMAND › VF load (faults)", outcome);
        row(s, "VF memory bit cleared: COMMAND › VF pread BAR", pread(&vf, BAR0, 8, 4));
        on(&vf);
        row(s, "VF back on: COMMAND, load", format!("{} {}", command(&vf), value(load(at, 8))));
        off(&pf);
        let refused = show(load(base.wrapping_add(8), 8).expect_err("off"), base);
        row(s, "PF memory off: PF load / VF load", format!("{refused} / {}", value(load(at, 8))));
        on(&pf);
        row(s, "VFIO_DEVICE_RESET of the PF", zero(pf.reset()));
        let both = Bus::new([pf.clone(), vf.clone()]);
        let reset = |own: &str| zero(both.hot_reset(|function| function.name() == own, |_| Ok(())));
        row(s, "hot reset with PF's group only", reset("PF"));
        row(s, "hot reset with PF's group only › VF's group only", reset("VF"));
        let loads = format!("{} {}", value(load(base.wrapping_add(8), 8)), value(load(at, 8)));
        row(s, "hot reset with PF's group only › after: PF load, VF load", loads);
        // The driver has each virtual function in a set of its own, open or not: it is a stranger on its function's bus.
        let of_pf = Bus::new([pf.clone()]).with_foreign("VF");
        let before = zaps(&pf, BAR0);
        for owned in ["both groups", "both groups, VF's device closed", "count 1 of group fds where VF's device closed"]
        {
            let refused = zero(of_pf.hot_reset(|_| true, |_| panic!("it was reset")));
            row(s, &format!("hot reset with PF's group only › {owned}"), refused);
        }
        s.more(
            &format!("PF zapped by hot resets that were refused{suffix}"),
            (zaps(&pf, BAR0) - before).to_string(),
            "0",
        );
    }
}

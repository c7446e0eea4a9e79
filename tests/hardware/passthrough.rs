//! The device model over real devices: a guest's writes to configuration space reach both, in the right order.

use crate::accesses::power_control;
use crate::rig::{BAR, FUNCTIONS, MEMORY, NIC, NVME, Opened, rig};
use crate::support::AtTheEnd;
use nix::libc;
use revocable_mmio::pci::{Bus, PciDevice, PciError, Space};
use revocable_mmio::vfio::RegionInfo;
use revocable_mmio::{AccessError, InvalidateNotifier, MapOptions, NotifyError};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

fn model(opened: &Opened) -> PciDevice {
    opened.device.pci().expect("it is described").build().expect("it is made")
}

fn read<const N: usize>(device: &PciDevice, space: Space, at: u64) -> Result<[u8; N], PciError> {
    let mut bytes = [0; N];
    device.read(space, at, &mut bytes[..]).map(|_| bytes)
}

/// Sets or clears the memory bit, as a guest does.
fn turn(device: &PciDevice, on: bool) {
    let command = device.command() & !2 | if on { 2 } else { 0 };
    device.write(Space::Config, 4, &command.to_le_bytes()[..]).expect("configuration space");
}

#[test]
fn a_model_has_the_devices_own_registers_and_bars() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(NIC);
    opened.turn(true);
    let nic = model(&opened);
    assert_eq!(read(&nic, Space::Config, 0).expect("ids"), [0x86, 0x80, 0xd3, 0x10]);
    let mut real = [0; 256];
    opened.device.read_config(0, &mut real).expect("configuration space");
    assert_eq!(read::<256>(&nic, Space::Config, 0).expect("all of it"), real);
    // A BAR is sized and moved in the kernel's virtual registers.
    nic.write(Space::Config, 0x10, &u32::MAX.to_le_bytes()[..]).expect("sizing");
    assert_eq!(read(&nic, Space::Config, 0x10).expect("its size"), 0xfffe_0000_u32.to_le_bytes());
    let beyond = read::<4>(&nic, Space::Config, opened.device.config_size()).map_err(|e| e.errno());
    assert_eq!(beyond, Err(libc::EFAULT));

    // Memory by a mapping and by calls, ports by calls.
    let mapping = nic.map(Space::Bar(0), MapOptions::new()).expect("a mapping");
    let status = mapping.read::<u32>(8).expect("on");
    assert_eq!(read(&nic, Space::Bar(0), 8).expect("on"), status.to_le_bytes());
    read::<4>(&nic, Space::Bar(2), 0).expect("I/O ports");
    nic.write(Space::Bar(2), 0, &8_u32.to_le_bytes()[..]).expect("the register's number");
    assert_eq!(read(&nic, Space::Bar(2), 4).expect("through the ports"), status.to_le_bytes(), "the same register");
    // The table of vectors is not for calls.
    assert_eq!(read(&nic, Space::Bar(3), 0).expect("on"), [0xff; 16]);
    // The ROM, by calls.
    let rom = RegionInfo::ask(opened.device.as_fd(), 6).expect("the kernel describes it");
    assert_eq!(nic.info(Space::Rom).size, rom.size());
    assert_ne!(rom.size(), 0, "QEMU's e1000e has a ROM");
    assert_eq!(read(&nic, Space::Rom, 0).expect("on"), [0x55, 0xaa], "the signature");
    let mut content = [0; 64];
    let at = i64::try_from(rom.offset()).expect("a place in the file");
    assert_eq!(nix::sys::uio::pread(&opened.device, &mut content, at), Ok(content.len()));
    assert_eq!(read::<64>(&nic, Space::Rom, 0).expect("on"), content);
    turn(&nic, false);
    assert_eq!(read::<4>(&nic, Space::Bar(0), 8).map_err(|e| e.errno()), Err(libc::EIO));
    assert_eq!(read::<4>(&nic, Space::Rom, 0).map_err(|e| e.errno()), Err(libc::ENOMEM));
    read::<4>(&nic, Space::Bar(2), 4).expect("ports are not memory");
    turn(&nic, true);
    assert_eq!(read(&nic, Space::Bar(0), 8).expect("on"), status.to_le_bytes());
}

/// What the device itself says when a region loses its memory, and when it has it again.
struct Order {
    opened: Arc<Opened>,
    seen: Mutex<Vec<(&'static str, bool)>>,
}

impl InvalidateNotifier for Order {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.seen.lock().expect("no panic").push(("before it goes", self.opened.device.is_memory_enabled()));
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.seen.lock().expect("no panic").push(("after it came", self.opened.device.is_memory_enabled()));
        Ok(())
    }
}

#[test]
fn the_regions_go_before_the_device_and_come_after_it() {
    let Some(rig) = rig() else { return };
    let opened = Arc::new(rig.open(NIC));
    opened.turn(true);
    let nic = model(&opened);
    let power = power_control(&opened.device);
    let region = nic.region(Space::Bar(0)).expect("registers");
    let mapping = nic.map(Space::Bar(0), MapOptions::new()).expect("a mapping");
    let order = Arc::new(Order { opened: Arc::clone(&opened), seen: Mutex::default() });
    let subscription = region.subscribe(0..4096, Arc::clone(&order) as _);
    let status = mapping.read::<u32>(8).expect("on");
    let set_power = |state: u16| {
        let written = nic.write(Space::Config, power, &state.to_le_bytes()[..]);
        assert_eq!(written.expect("configuration space"), 2);
    };
    type Step<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn());
    let steps: [Step<'_>; 2] = [
        ("the memory bit", &|| turn(&nic, false), &|| turn(&nic, true)),
        ("D3hot", &|| set_power(3), &|| set_power(0)),
    ];
    for (what, off, on) in steps {
        for _ in 0..3 {
            order.seen.lock().expect("no panic").clear();
            off();
            assert!(!region.is_enabled() && !opened.device.is_memory_enabled(), "{what}");
            assert_eq!(mapping.read::<u32>(8), Err(AccessError::Disabled { offset: 8 }), "{what}");
            assert_eq!(read::<4>(&nic, Space::Bar(0), 8).map_err(|e| e.errno()), Err(libc::EIO), "{what}");
            on();
            assert!(region.is_enabled() && opened.device.is_memory_enabled(), "{what}");
            let seen = order.seen.lock().expect("no panic").clone();
            assert_eq!(seen, [("before it goes", true), ("after it came", true)], "{what}");
            assert_eq!(mapping.read::<u32>(8), Ok(status), "{what}");
        }
    }
    // A bit that is not the memory's reaches the device, and changes no region.
    order.seen.lock().expect("no panic").clear();
    nic.write(Space::Config, 4, &(nic.command() ^ 4).to_le_bytes()[..]).expect("bus master");
    assert_eq!(nic.command(), opened.command());
    assert_eq!(order.seen.lock().expect("no panic").len(), 0);
    // Behind the model's back: the region is enabled, and accesses are refused all the same.
    opened.turn(false);
    assert!(region.is_enabled());
    assert_eq!(mapping.read::<u32>(8), Err(AccessError::Disabled { offset: 8 }));
    assert_eq!(read::<4>(&nic, Space::Bar(0), 8).map_err(|e| e.errno()), Err(libc::EIO));
    opened.turn(true);
    assert_eq!(mapping.read::<u32>(8), Ok(status));
    drop(subscription);
}

#[test]
fn resets_through_the_model_reset_the_device_and_refuse_no_access() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(NVME);
    opened.turn(true);
    let disk = model(&opened);
    let mapping = disk.map(Space::Bar(0), MapOptions::new()).expect("a mapping");
    let version = mapping.read::<u32>(8).expect("on");
    let mut config = [0; 256];
    opened.device.read_config(0, &mut config).expect("configuration space");
    let mut express = usize::from(config[0x34]);
    while config[express] != 0x10 {
        express = usize::from(config[express + 1]);
        assert!(express >= 0x40, "no PCI Express capability");
    }
    const MASK: usize = 0x0c;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = AtTheEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(mapping.read::<u32>(8), Ok(version), "no access is refused");
            }
        });
        let control = express as u64 + 8;
        for round in 0..6 {
            // A register that only a reset clears shows that there was one.
            mapping.write(MASK, 1_u32).expect("on");
            assert_eq!(mapping.read::<u32>(MASK), Ok(1));
            if round % 2 == 0 {
                disk.reset().expect("by call");
            } else {
                let word = u16::from_le_bytes(read(&disk, Space::Config, control).expect("device control")) | 1 << 15;
                disk.write(Space::Config, control, &word.to_le_bytes()[..]).expect("FLR");
            }
            assert_eq!(mapping.read::<u32>(MASK), Ok(0), "round {round}: it was reset");
        }
    });
    turn(&disk, false);
    disk.reset().expect("reset");
    assert_eq!(mapping.read::<u32>(8), Err(AccessError::Disabled { offset: 8 }), "off before, off after");
    assert!(!opened.device.is_memory_enabled());
    turn(&disk, true);
    assert_eq!(mapping.read::<u32>(8), Ok(version));

    // A device without a reset says so, and nothing is zapped.
    let plain = rig.open(MEMORY);
    assert!(matches!(model(&plain).reset(), Err(PciError::NoReset { .. })));
}

#[test]
fn a_bus_is_reset_with_every_group_or_not_at_all() {
    let Some(rig) = rig() else { return };
    let first = rig.open(FUNCTIONS[0]);
    let second = rig.open_beside(&first, FUNCTIONS[1]);
    first.turn(true);
    second.turn(true);
    let bar = Space::Bar(BAR as usize);
    let models = [model(&first), model(&second)];
    let mappings = [&models[0], &models[1]].map(|model| model.map(bar, MapOptions::new()).expect("a mapping"));
    mappings[1].write(8, 0x77_u64).expect("on");
    let bus = Bus::new(models.iter().cloned());
    let reset = |groups: &[std::os::fd::BorrowedFd<'_>]| {
        bus.hot_reset(|_| true, |_| first.device.hot_reset(groups).map_err(std::io::Error::other))
    };
    // Not the caller's: the kernel is not asked.
    let refused = bus.hot_reset(|function| function.name() != models[1].name(), |_| panic!("the kernel was asked"));
    assert!(matches!(refused, Err(PciError::NotOwned { .. })), "{refused:?}");
    let refused = reset(&first.wrong_groups());
    assert!(matches!(refused, Err(PciError::Reset { .. })), "the kernel refuses: {refused:?}");
    assert_eq!(mappings[1].read::<u64>(8), Ok(0x77), "and the memory is given back");
    // A guard of one function: busy, and the device is left alone.
    let guarded = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let guard = mappings[1].try_access().expect("enabled");
            guarded.wait();
            guarded.wait();
            drop(guard);
        });
        guarded.wait();
        let busy = bus.hot_reset(|_| true, |_| panic!("the device was reset under a guard"));
        assert_eq!(busy.map_err(|e| e.errno()), Err(libc::EBUSY));
        guarded.wait();
    });
    reset(&first.groups()).expect("as the kernel wants it");
    assert_eq!(mappings[1].read::<u64>(8), Ok(0x77));
    turn(&models[1], false);
    reset(&first.groups()).expect("as the kernel wants it");
    assert!(first.device.is_memory_enabled() && !second.device.is_memory_enabled());
    mappings[0].read::<u64>(8).expect("on before, on after");
    assert_eq!(mappings[1].read::<u64>(8), Err(AccessError::Disabled { offset: 8 }), "off before, off after");
    turn(&models[1], true);
    assert_eq!(mappings[1].read::<u64>(8), Ok(0x77));
}

//! Resets of real devices, under load and inside of the crate's own: accesses wait, and none is refused.

use crate::rig::{BAR, By, FUNCTIONS, MEMORY, NIC, NVME, Opened, rig};
use crate::support::AtTheEnd;
use nix::errno::Errno;
use revocable_mmio::vfio::VfioError;
use revocable_mmio::{AccessError, MapOptions, Mapping, ResetGroup};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Runs `meanwhile` beside loads of every mapping. None may be refused. Returns how many there were.
fn loads_beside(mappings: &[&Mapping], at: usize, meanwhile: impl FnOnce()) -> u64 {
    let stop = AtomicBool::new(false);
    let loads = AtomicU64::new(0);
    thread::scope(|scope| {
        let _stop = AtTheEnd(&stop);
        for mapping in mappings {
            let (stop, loads) = (&stop, &loads);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(e) = mapping.read::<u32>(at) {
                        panic!("refused: {e}");
                    }
                    loads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        meanwhile();
        assert!(loads.load(Ordering::Relaxed) > 0, "no load was made meanwhile");
    });
    loads.into_inner()
}

/// A function-level reset by the PCI Express capability; where it is, if the device has it.
fn flr(opened: &Opened) -> Option<u64> {
    let mut config = [0; 256];
    opened.device.read_config(0, &mut config).expect("configuration space");
    let mut at = usize::from(config[0x34]);
    while at >= 0x40 && config[at] != 0x10 {
        at = usize::from(config[at + 1]);
    }
    let capabilities = u32::from_le_bytes(config[at + 4..][..4].try_into().expect("4 bytes"));
    (at >= 0x40 && capabilities & 1 << 28 != 0).then_some(at as u64 + 8)
}

#[test]
fn resets_of_a_function_refuse_no_access_alone_or_inside_of_the_regions_own() {
    let Some(rig) = rig() else { return };
    for (name, at) in [(NVME, 8), (NIC, 8)] {
        let opened = rig.open(name);
        opened.turn(true);
        let bar = opened.bar(0);
        let region = bar.region().expect("one region");
        let mapping = region.map(MapOptions::new()).expect("a mapping");
        let was = mapping.read::<u32>(at).expect("on");
        let mut done = 0;
        let loads = loads_beside(&[&mapping], at, || {
            for _ in 0..5 {
                opened.device.reset().expect("the kernel's alone");
                region.reset(|_| opened.device.reset()).expect("ours").expect("with the kernel's inside");
                done += 2;
                if let Some(control) = flr(&opened) {
                    let word = opened.device.read_config_u16(control) | 1 << 15;
                    opened.device.write_config(control, &word.to_le_bytes()).expect("FLR");
                    done += 1;
                }
            }
        });
        assert_eq!(mapping.read::<u32>(at), Ok(was), "a register that a reset leaves as it is");
        println!("{name}: {done} resets beside {loads} loads, none refused");

        // Off before, off after.
        opened.turn(false);
        region.reset(|_| opened.device.reset()).expect("ours").expect("the kernel's");
        assert_eq!(mapping.read::<u32>(at), Err(AccessError::Disabled { offset: at }));
        opened.turn(true);
        region.disable().expect("disable");
        region.reset(|_| opened.device.reset()).expect("ours").expect("the kernel's");
        assert_eq!(mapping.read::<u32>(at), Err(AccessError::Disabled { offset: at }));
        region.enable().expect("enable");
        assert_eq!(mapping.read::<u32>(at), Ok(was));
        assert_eq!(region.stats().degraded, 0);
    }
}

trait ReadU16 {
    fn read_config_u16(&self, at: u64) -> u16;
}

impl ReadU16 for revocable_mmio::vfio::VfioDevice {
    fn read_config_u16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.read_config(at, &mut bytes).expect("configuration space");
        u16::from_le_bytes(bytes)
    }
}

#[test]
fn a_device_without_a_reset_says_so_and_keeps_its_memory() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.write(8, 7_u64).expect("on");
    let refused = region.reset(|_| opened.device.reset()).expect("ours");
    assert!(matches!(&refused, Err(VfioError::Sys(e)) if e.errno == Errno::EINVAL), "{refused:?}");
    assert_eq!(mapping.read::<u64>(8), Ok(7));
    let refused = opened.device.hot_reset_functions();
    assert!(matches!(&refused, Err(VfioError::Sys(e)) if e.errno == Errno::ENODEV), "on a root bus: {refused:?}");
}

#[test]
fn a_reset_of_the_bus_takes_both_functions_and_refuses_no_access() {
    let Some(rig) = rig() else { return };
    let first = rig.open(FUNCTIONS[0]);
    crate::rig::bind(FUNCTIONS[1]);
    if let By::Iommufd(id) = first.by {
        // Whose group is bound to the iommufd, and which has no number there yet (`vfio_pci_fill_devs`).
        let functions = first.device.hot_reset_functions().expect("behind a port");
        assert_eq!(functions.iter().map(|f| f.group).collect::<Vec<_>>(), [id, 0]);
    }
    let second = rig.open_beside(&first, FUNCTIONS[1]);
    let functions = first.device.hot_reset_functions().expect("behind a port");
    assert_eq!(functions.iter().map(|f| (f.bus, f.devfn)).collect::<Vec<_>>(), [(1, 0), (1, 1)]);
    match (&first.by, &second.by) {
        (By::Iommufd(first), By::Iommufd(second)) => {
            assert_eq!(functions.iter().map(|f| f.group).collect::<Vec<_>>(), [*first, *second]);
        }
        _ => assert_eq!(functions[0].group, functions[1].group),
    }
    first.turn(true);
    second.turn(true);
    let bars = [first.bar(BAR), second.bar(BAR)];
    let regions: Vec<_> = bars.iter().map(|bar| bar.region().expect("one region")).collect();
    let mappings: Vec<_> = regions.iter().map(|region| region.map(MapOptions::new()).expect("a mapping")).collect();
    for (i, mapping) in mappings.iter().enumerate() {
        mapping.write(8, 0x70_u64 + i as u64).expect("on");
    }
    let group = ResetGroup::new(regions.iter().copied());
    let mut refusals = 0;
    let loads = loads_beside(&mappings.iter().collect::<Vec<_>>(), 8, || {
        for _ in 0..3 {
            // Without every group, or with one and an iommufd: refused, and nothing is lost.
            let refused = group.reset(|_| first.device.hot_reset(&first.wrong_groups())).expect("ours");
            assert!(matches!(&refused, Err(VfioError::Sys(e)) if e.errno == Errno::EINVAL), "{refused:?}");
            group.reset(|_| first.device.hot_reset(&first.groups())).expect("ours").expect("the kernel's");
            // The kernel of 6.1 gives up (EBUSY) if a fault of one of the functions is under way. Inside of the crate's own
            // reset there is none.
            let busy = |done: &Result<(), VfioError>| matches!(done, Err(VfioError::Sys(e)) if e.errno == Errno::EBUSY);
            let mut done = first.device.hot_reset(&first.groups());
            for _ in 0..1000 {
                if !busy(&done) {
                    break;
                }
                refusals += 1;
                done = first.device.hot_reset(&first.groups());
            }
            done.expect("the kernel's alone");
        }
    });
    println!("6 resets of the bus beside {loads} loads, none refused; the kernel alone was busy {refusals} times");
    for (i, mapping) in mappings.iter().enumerate() {
        assert_eq!(mapping.read::<u64>(8), Ok(0x70 + i as u64), "plain memory");
    }
    // One off before: off after, and only that one.
    second.turn(false);
    group.reset(|_| first.device.hot_reset(&first.groups())).expect("ours").expect("the kernel's");
    assert_eq!(mappings[0].read::<u64>(8), Ok(0x70));
    assert_eq!(mappings[1].read::<u64>(8), Err(AccessError::Disabled { offset: 8 }));
    second.turn(true);
    assert_eq!(mappings[1].read::<u64>(8), Ok(0x71));
}

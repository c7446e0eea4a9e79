//! Accesses of every kind, with the device on or off, and the region enabled or disabled.

use crate::rig::{BAR, LEN, MEMORY, NIC, rig};
use crate::support::{addr, raw};
use nix::errno::Errno;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{AccessError, MapOptions, Mapping, OnDisabled, PinError, Strategy};

/// One access of every kind at `offset`. Each must be refused as the policy says, and none may change anything.
fn refuses(mapping: &Mapping, offset: usize) {
    let gone = AccessError::Disabled { offset };
    let mut bytes = [0; 24];
    if mapping.on_disabled() == OnDisabled::AllOnes {
        assert_eq!(mapping.read::<u8>(offset), Ok(u8::MAX));
        assert_eq!(mapping.read::<u16>(offset), Ok(u16::MAX));
        assert_eq!(mapping.read::<u32>(offset), Ok(u32::MAX));
        assert_eq!(mapping.read::<u64>(offset), Ok(u64::MAX));
        assert_eq!(mapping.try_read::<u32>(offset), Ok(u32::MAX));
        assert_eq!(mapping.read_with::<u32>(offset, FaultFlags::WAIT), Ok(u32::MAX));
        assert_eq!(mapping.write(offset, 0_u64), Ok(()));
        assert_eq!(mapping.try_write(offset, 0_u64), Ok(()));
        assert_eq!(mapping.swap(offset, 0_u64), Ok(u64::MAX));
        assert_eq!(mapping.compare_exchange(offset, 0_u64, 1), Ok(Err(u64::MAX)));
        assert_eq!(mapping.read_slice(offset, &mut bytes), Ok(()));
        assert_eq!(bytes, [0xff; 24]);
        assert_eq!(mapping.write_slice(offset, &[0; 24]), Ok(()));
        assert_eq!(mapping.fill(offset, 0, 24), Ok(()));
        return;
    }
    assert_eq!(mapping.read::<u8>(offset), Err(gone));
    assert_eq!(mapping.read::<u16>(offset), Err(gone));
    assert_eq!(mapping.read::<u32>(offset), Err(gone));
    assert_eq!(mapping.read::<u64>(offset), Err(gone));
    assert_eq!(mapping.try_read::<u32>(offset), Err(gone));
    assert_eq!(mapping.read_with::<u32>(offset, FaultFlags::WAIT), Err(gone));
    assert_eq!(mapping.write(offset, 0_u64), Err(gone));
    assert_eq!(mapping.try_write(offset, 0_u64), Err(gone));
    assert_eq!(mapping.swap(offset, 0_u64), Err(gone));
    assert_eq!(mapping.fetch_add(offset, 1_u32), Err(gone));
    assert_eq!(mapping.compare_exchange(offset, 0_u64, 1), Err(gone));
    assert_eq!(mapping.read_slice(offset, &mut bytes).map_err(|e| (e.done, e.error)), Err((0, gone)));
    assert_eq!(mapping.write_slice(offset, &bytes).map_err(|e| (e.done, e.error)), Err((0, gone)));
    assert_eq!(mapping.fill(offset, 0, 24).map_err(|e| (e.done, e.error)), Err((0, gone)));
    // By address, with no one to serve it: the same signal and the same errno, whoever revokes.
    let at = addr(mapping) + offset;
    let hit = raw::load(std::ptr::with_exposed_provenance(at), 8).expect_err("revoked");
    assert_eq!(hit, raw::Hit::bus(at));
    assert_eq!(raw::store(std::ptr::with_exposed_provenance_mut(at), 8, 0).expect_err("revoked"), raw::Hit::bus(at));
    assert_eq!(raw::write_from(at, 8), Err(Errno::EFAULT));
    assert_eq!(raw::read_into(at, &[0; 8]), Err(Errno::EFAULT));
}

#[test]
fn whoever_revokes_in_any_order_accesses_get_what_the_policy_says() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    opened.turn(true);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    assert_eq!(region.strategy(), Strategy::Replace);
    assert_eq!(region.len(), LEN);
    for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes] {
        let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("a mapping");
        // A page that was touched, one that was not, and the last.
        let places = [0x1008, 0x7_5000, LEN - 24];
        // The steps of two who know nothing of each other: the device off or on, the region disabled or enabled.
        for steps in
            [["off", "disable", "on", "enable"], ["disable", "off", "enable", "on"], ["off", "on", "disable", "enable"]]
        {
            for at in places {
                mapping.write(at, 0x5eed_u64).expect("on and enabled");
                assert_eq!(mapping.read::<u64>(at), Ok(0x5eed));
            }
            let (mut on, mut enabled) = (true, true);
            for step in steps {
                match step {
                    "off" | "on" => {
                        on = step == "on";
                        opened.turn(on);
                    }
                    _ => {
                        enabled = step == "enable";
                        let changed = if enabled { region.enable() } else { region.disable() };
                        assert!(changed.expect("nothing is in the way"));
                    }
                }
                assert_eq!(opened.device.is_memory_enabled(), on);
                for at in places {
                    if on && enabled {
                        assert_eq!(mapping.read::<u64>(at), Ok(0x5eed), "refused, not deferred: {steps:?} {step}");
                        assert_eq!(mapping.try_read::<u64>(at), Ok(0x5eed));
                    } else {
                        refuses(&mapping, at);
                    }
                }
                let pinned = region.pin(0..LEN, FaultFlags::NOWAIT).map(drop);
                assert_eq!(pinned.is_ok(), on && enabled, "{steps:?} {step}: {pinned:?}");
                if enabled && !on {
                    assert_eq!(pinned, Err(PinError::Disabled));
                }
            }
        }
    }
    let stats = region.stats();
    assert_eq!((stats.degraded, stats.pins), (0, 0));
}

#[test]
fn a_wait_at_a_device_that_is_off_would_have_no_end_and_is_an_error() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("a mapping");
    opened.turn(false);
    assert_eq!(mapping.read::<u32>(8), Err(AccessError::Disabled { offset: 8 }));
    opened.turn(true);
    mapping.read::<u32>(8).expect("on again");
    region.disable().expect("disable");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| mapping.read::<u32>(8));
        crate::support::a_moment();
        assert!(!reader.is_finished(), "the region's own revocation is waited for");
        region.enable().expect("enable");
        reader.join().expect("no panic").expect("it is on");
    });
}

#[test]
fn d3hot_and_low_power_refuse_as_the_memory_bit_does() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(NIC);
    opened.turn(true);
    let bar = opened.bar(0);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.read::<u32>(8).expect("D0");
    let power = power_control(&opened.device);
    opened.device.write_config(power, &3_u16.to_le_bytes()).expect("D3hot");
    assert_eq!(opened.command() & 2, 2, "the bit is not what revokes");
    refuses(&mapping, 8);
    assert_eq!(region.pin(0..4096, FaultFlags::WAIT).map(drop), Err(PinError::Disabled));
    opened.device.write_config(power, &0_u16.to_le_bytes()).expect("D0");
    opened.turn(true);
    mapping.read::<u32>(8).expect("D0 again");

    opened.device.enter_low_power().expect("the device has power management");
    refuses(&mapping, 8);
    assert!(opened.device.enter_low_power().is_err(), "it is in low power already");
    refuses(&mapping, 8);
    opened.device.exit_low_power().expect("it wakes up");
    mapping.read::<u32>(8).expect("awake");
}

/// Where PMCSR is.
pub(crate) fn power_control(device: &revocable_mmio::vfio::VfioDevice) -> u64 {
    let mut config = [0; 256];
    device.read_config(0, &mut config).expect("configuration space");
    let mut at = usize::from(config[0x34]);
    while config[at] != 1 {
        at = usize::from(config[at + 1]);
        assert!(at >= 0x40, "no power management");
    }
    at as u64 + 4
}

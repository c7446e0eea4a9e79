//! A peer that takes the file's lock between the look and the emptying: the change is undone, and made again.

use crate::one_at_a_time;
use nix::errno::Errno;
use revocable_mmio::pci::{Bar, PciDevice, Space};
use revocable_mmio::{OnDisabled, Region, RevokeError, inject};

const LEN: u64 = 0x4000;
const COMMAND: u64 = 4;

/// Lets the next emptying be held up.
fn held_up() {
    inject::fail("ftruncate", 0, 1, Errno::EBUSY);
}

#[test]
fn a_disable_is_made_again_and_a_try_is_busy() {
    let _one = one_at_a_time();
    let region = Region::builder(4096).shared(OnDisabled::Sigbus).build().expect("it builds");
    held_up();
    assert!(matches!(region.try_disable(), Err(RevokeError::Busy(_))) && inject::clear());
    assert!(region.is_enabled());
    held_up();
    assert!(region.disable().expect("it revokes") && inject::clear());
}

#[test]
fn a_write_to_the_command_register_is_made_again() {
    let _one = one_at_a_time();
    let bar = Bar::memory(LEN).shared(OnDisabled::Sigbus);
    let device = PciDevice::builder(0x1af4, 0x1042).bar(0, bar).build().expect("a device");
    for (value, enabled) in [(2, true), (0, false)] {
        held_up();
        device.write(Space::Config, COMMAND, &u16::to_le_bytes(value)[..]).expect("the write is made");
        // Giving back empties nothing.
        assert!(inject::clear() != enabled);
        assert_eq!(device.command(), value);
        assert_eq!(device.region(Space::Bar(0)).expect("memory").is_enabled(), enabled);
    }
}

//! BARs that other processes map: a peer that has only the descriptor loses the memory with the device's state, and gets it
//! back with every store that it made.

use crate::support;
use crate::support::raw::{self, Hit};
use memmap2::{MmapOptions, MmapRaw};
use revocable_mmio::pci::{Bar, PciDevice, PciError, Space};
use revocable_mmio::{Backing, BuildError, OnDisabled, ShareAccess, ShareError, Strategy};
use std::sync::Arc;

const BAR: Space = Space::Bar(0);
const COMMAND: u64 = 4;
/// PMCSR of the power-management capability.
const POWER: u64 = 0x44;
/// The high byte of device control, of the PCI Express capability at 0x50.
const CONTROL: u64 = 0x59;
const FLR: [u8; 1] = [0x80];
const LEN: u64 = 64 << 10;
const EINVAL: i32 = 22;

/// What a peer sees of a BAR: a mapping of the descriptor, of which the crate knows nothing.
struct Peer(MmapRaw);

impl Peer {
    fn of(device: &PciDevice) -> Self {
        let fd = device.region(BAR).expect("memory").share(ShareAccess::ReadWrite).expect("a descriptor");
        Self(MmapOptions::new().map_raw(&fd).expect("a mapping"))
    }

    fn load(&self, at: usize) -> Result<u64, Hit> {
        raw::load(self.0.as_ptr().wrapping_add(at), 8)
    }

    fn store(&self, at: usize, value: u64) -> Result<(), Hit> {
        raw::store(self.0.as_mut_ptr().wrapping_add(at), 8, value)
    }

    /// The outcome of an access while the memory is away.
    fn refused(&self, peers: OnDisabled, at: usize) {
        match peers {
            OnDisabled::AllOnes => assert_eq!(self.load(at), Ok(u64::MAX)),
            _ => assert_eq!(self.load(at), Err(Hit::bus(self.0.as_ptr().addr() + at))),
        }
    }
}

fn device(peers: OnDisabled) -> PciDevice {
    PciDevice::builder(1, 2)
        .command(2)
        .bar(0, Bar::memory(LEN).shared(peers))
        .bar(1, Bar::memory(4096))
        .power(0x40)
        .express(0x50)
        .strategy(Strategy::Replace)
        .on_reset(|_, _| Ok(()))
        .build()
        .expect("a device")
}

fn write(device: &PciDevice, at: u64, bytes: &[u8]) {
    device.write(Space::Config, at, bytes).expect("a register");
}

const POLICIES: [OnDisabled; 2] = [OnDisabled::Sigbus, OnDisabled::AllOnes];

#[test]
fn the_memory_bit_and_d3hot_take_a_shared_bar_from_peers_and_give_it_back() {
    support::start();
    for peers in POLICIES {
        let device = device(peers);
        let peer = Peer::of(&device);
        let owner = device.owner(BAR).expect("memory");
        for (round, [off, on]) in [[(COMMAND, 0), (COMMAND, 2)], [(POWER, 3), (POWER, 0)]].into_iter().enumerate() {
            let value = round as u64 + 1;
            peer.store(0x8000, value).expect("the memory is there");
            write(&device, off.0, &[off.1, 0]);
            peer.refused(peers, 0x8000);
            if peers == OnDisabled::AllOnes {
                peer.store(0x8008, 77).expect("goes nowhere");
            }
            assert_eq!(owner.read::<u64>(0x8000), Ok(value));
            owner.write(0x8010, value).expect("the owner is not concerned");
            write(&device, on.0, &[on.1, 0]);
            assert_eq!([0x8000, 0x8008, 0x8010].map(|at| peer.load(at)), [Ok(value), Ok(0), Ok(value)]);
        }
    }
}

#[test]
fn a_reset_takes_a_shared_bar_from_peers_for_as_long_as_it_lasts() {
    support::start();
    for peers in POLICIES {
        let ways: [fn(&PciDevice); 2] =
            [|device| device.reset().expect("a reset"), |device| write(device, CONTROL, &FLR)];
        for reset in ways {
            let seen = Arc::new(std::sync::Mutex::new(None::<Arc<Peer>>));
            let inside = Arc::clone(&seen);
            let device = PciDevice::builder(1, 2)
                .command(2)
                .bar(0, Bar::memory(LEN).shared(peers))
                .express(0x50)
                .on_reset(move |device, _| {
                    let peer = inside.lock().expect("no panic").take().expect("one reset");
                    peer.refused(peers, 0x100);
                    device.owner(BAR).expect("memory").write(0x108, 5u64).map_err(std::io::Error::other)
                })
                .build()
                .expect("a device");
            let peer = Arc::new(Peer::of(&device));
            peer.store(0x100, 4).expect("the memory is there");
            *seen.lock().expect("no panic") = Some(Arc::clone(&peer));
            reset(&device);
            assert!(seen.lock().expect("no panic").is_none(), "the reset ran");
            assert_eq!([peer.load(0x100), peer.load(0x108)], [Ok(4), Ok(5)]);
        }
    }
}

#[test]
fn a_device_that_starts_with_memory_off_shows_nothing_until_it_is_on() {
    support::start();
    let device =
        PciDevice::builder(1, 2).bar(0, Bar::memory(16).shared(OnDisabled::AllOnes)).build().expect("a device");
    let peer = Peer::of(&device);
    peer.refused(OnDisabled::AllOnes, 0);
    write(&device, COMMAND, &[2, 0]);
    assert_eq!(peer.load(0), Ok(0));
}

#[test]
fn only_memory_of_the_bars_own_can_be_shared() {
    support::start();
    struct Ports;
    impl revocable_mmio::pci::PortIo for Ports {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {}
    }
    let build = |bar: Bar| PciDevice::builder(1, 2).bar(0, bar.shared(OnDisabled::Sigbus)).build();
    let error = build(Bar::io(16, Arc::new(Ports))).expect_err("ports");
    assert!(matches!(&error, PciError::Description(why) if why.contains("I/O ports")), "{error}");
    assert_eq!(error.errno(), EINVAL);
    let error = build(Bar::memory(2 << 20).backing(Backing::Huge2M)).expect_err("huge pages");
    assert!(matches!(error, PciError::Build(BuildError::Strategy { strategy: Strategy::Withdraw, .. })), "{error}");

    let device = device(OnDisabled::Sigbus);
    let other = device.region(Space::Bar(1)).expect("memory");
    assert_eq!(other.strategy(), Strategy::Replace, "only the shared BAR pays for it");
    assert!(matches!(other.share(ShareAccess::ReadOnly), Err(ShareError::Strategy { .. })));
}

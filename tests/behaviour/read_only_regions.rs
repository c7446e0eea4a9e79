//! Regions that can be read only: a descriptor that can't be written is a region that can be read.

use crate::support;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use revocable_mmio::{
    AccessError, Backing, BuildError, MapError, MapOptions, OnRevoke, Prot, ProtectError, Region, Strategy,
};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};

const LEN: usize = 64 << 10;
const CONTENT: u32 = 0x5eed_5eed;

/// A memfd with content, and a second descriptor of it that can be read only.
fn file() -> (File, OwnedFd) {
    let mut file = File::from(memfd_create(c"read-only", MFdFlags::MFD_ALLOW_SEALING).expect("a memfd"));
    file.write_all(&CONTENT.to_le_bytes().repeat(LEN / 4)).expect("room");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reader = OpenOptions::new().read(true).open(path).expect("open for reading");
    (file, reader.into())
}

fn refuses_stores(region: &Region) {
    assert!(!region.is_writable());
    assert!(matches!(region.map(MapOptions::new()), Err(MapError::ReadOnly)), "a mapping for stores");
    let mapping = region.map(MapOptions::new().read_only()).expect("a mapping for loads");
    for _ in 0..3 {
        assert_eq!(mapping.read::<u32>(8), Ok(CONTENT));
        assert_eq!(mapping.try_read::<u32>(LEN - 4), Ok(CONTENT));
        assert_eq!(mapping.write(8, 1_u32), Err(AccessError::ReadOnly { offset: 8 }));
        assert_eq!(mapping.fetch_add(8, 1_u32), Err(AccessError::ReadOnly { offset: 8 }));
        assert!(matches!(mapping.protect(0..4096, Prot::ReadWrite), Err(ProtectError::ReadOnly)));
        drop(region.pin(0..LEN, revocable_mmio::fault::FaultFlags::WAIT).expect("a pin"));
        region.disable().expect("disable");
        assert_eq!(mapping.read::<u32>(8), Err(AccessError::Disabled { offset: 8 }));
        region.reset(|_| ()).expect("reset");
        region.enable().expect("enable");
    }
    assert_eq!(region.stats().degraded, 0);
}

fn owner_refuses_stores(region: &Region) {
    let owner = region.owner();
    assert_eq!(owner.read::<u32>(8), Ok(CONTENT));
    assert_eq!(owner.write(8, 1_u32), Err(AccessError::ReadOnly { offset: 8 }));
    assert_eq!(owner.write_slice(8, &[1]).map_err(|e| e.error), Err(AccessError::ReadOnly { offset: 8 }));
    assert_eq!(owner.fill(8, 1, 1).map_err(|e| e.error), Err(AccessError::ReadOnly { offset: 8 }));
}

#[test]
fn a_descriptor_for_reading_makes_a_region_for_reading() {
    support::start();
    let (_file, reader) = file();
    let region = Region::builder(LEN).backing(Backing::File { fd: reader, offset: 0, device: None }).build();
    let region = region.expect("a region");
    assert_ne!(region.strategy(), Strategy::Zap, "userfaultfd does not register it");
    refuses_stores(&region);
    owner_refuses_stores(&region);
}

#[test]
fn a_device_for_reading_makes_a_region_for_reading() {
    support::start();
    for asked in [false, true] {
        let (file, reader) = file();
        let fd = if asked { file.into() } else { reader };
        let mut builder = Region::builder(LEN).backing(Backing::File { fd, offset: 0, device: Some(OnRevoke::Keep) });
        if asked {
            builder = builder.read_only();
        }
        let region = builder.build().expect("a region");
        refuses_stores(&region);
        owner_refuses_stores(&region);
    }
}

#[test]
fn a_file_sealed_against_writing_is_not_mapped_for_stores() {
    support::start();
    let (file, _) = file();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE)).expect("a seal");
    let region = Region::builder(LEN).backing(Backing::File { fd: file.into(), offset: 0, device: None }).build();
    let region = region.expect("a region");
    refuses_stores(&region);
    owner_refuses_stores(&region);
}

#[test]
fn zap_says_that_it_cannot_register_what_cannot_be_written() {
    support::start();
    let (_file, reader) = file();
    let builder = Region::builder(LEN).backing(Backing::File { fd: reader, offset: 0, device: None });
    let refused = builder.strategy(Strategy::Zap).build();
    assert!(matches!(refused, Err(BuildError::Strategy { strategy: Strategy::Zap, source: None, .. })), "{refused:?}");
}

#[test]
fn the_owner_of_a_memory_that_guests_only_read_fills_it() {
    support::start();
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw] {
        let region = match Region::builder(LEN).read_only().strategy(strategy).build() {
            Ok(region) => region,
            Err(e) => {
                support::skip(&e.to_string(), support::at_its_best());
                continue;
            }
        };
        let owner = region.owner();
        owner.write_slice(0, &CONTENT.to_le_bytes().repeat(LEN / 4)).expect("the owner's memory");
        refuses_stores(&region);
    }
}

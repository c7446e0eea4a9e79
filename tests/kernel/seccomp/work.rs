//! Regions and mappings of every strategy and policy, for threads that work under a filter.

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use revocable_mmio::{
    AccessError, Backing, MapOptions, Mapping, Monitor, OnDisabled, Prot, Region, ShareAccess, Strategy,
};
use std::os::fd::AsFd;

#[derive(Default)]
pub(super) struct Work {
    pub(super) regions: Vec<Region>,
    pub(super) mappings: Vec<Mapping>,
    /// For accessors only: their accesses resolve their own faults.
    pub(super) own: Vec<Mapping>,
    /// Of several rights each; never accessed.
    split: Vec<Mapping>,
}

fn split(mapping: &Mapping) {
    mapping.protect(0..4096, Prot::Read).expect("the mapping's rights can be changed");
}

/// A mapping whose second half the file does not have any more.
fn truncated(strategy: Strategy, monitor: &Monitor) -> (Region, Mapping) {
    let file = memfd_create(c"truncated", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    ftruncate(&file, 1 << 16).expect("it can grow");
    let backing = Backing::file(file.as_fd(), 0).expect("a descriptor");
    let region = Region::builder(1 << 16).backing(backing).strategy(strategy).monitor(monitor.clone());
    let region = region.build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    ftruncate(&file, 1 << 15).expect("it can shrink");
    (region, mapping)
}

pub(super) fn work(monitor: &Monitor) -> Work {
    let mut work = Work::default();
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
        for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block] {
            let region =
                Region::builder(1 << 18).strategy(strategy).monitor(monitor.clone()).build().expect("a region");
            work.mappings.push(region.map(MapOptions::new().on_disabled(policy)).expect("it maps"));
            work.split.push(region.map(MapOptions::new().on_disabled(policy)).expect("it maps"));
            if strategy == Strategy::Zap && policy == OnDisabled::Sigbus {
                work.own.push(region.map(MapOptions::new().accessors_only()).expect("it maps"));
            }
            work.regions.push(region);
        }
        let (region, mapping) = truncated(strategy, monitor);
        work.mappings.push(mapping);
        work.regions.push(region);
    }
    for (peers, share) in [(OnDisabled::Sigbus, true), (OnDisabled::AllOnes, false)] {
        let region = Region::builder(1 << 18).shared(peers).monitor(monitor.clone()).build().expect("a region");
        work.mappings.push(region.map(MapOptions::new()).expect("it maps"));
        if share {
            // Only one that peers may write to has a worker.
            drop(region.share(ShareAccess::ReadWrite).expect("a descriptor"));
        }
        work.regions.push(region);
    }
    work.split.iter().for_each(split);
    work
}

/// Loads and stores everywhere, whatever comes of it.
pub(super) fn access(mappings: &[Mapping], round: u64) -> u64 {
    let mut done = 0;
    for mapping in mappings {
        let at = (usize::try_from(round).unwrap_or(0) * 4096) % mapping.len();
        for result in [mapping.read::<u64>(at).map(drop), mapping.write::<u64>(at + 8, round)] {
            match result {
                Ok(()) => done += 1,
                Err(AccessError::Disabled { .. } | AccessError::NoMemory { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    done
}

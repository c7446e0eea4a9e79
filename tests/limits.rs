//! Many mappings and regions, and what happens at the process's limits: a clear error, and nothing half-made.

#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use revocable_mmio::{AccessError, MapOptions, Mapping, Monitor, OnDisabled, Region, Strategy};
use support::child::alone;
use support::count::{Held, all_mappings};
use support::matrix::STRATEGIES;
use support::{raw, read_text};

fn strategies() -> impl Iterator<Item = Strategy> {
    STRATEGIES.into_iter().filter(|strategy| Region::builder(4096).strategy(*strategy).build().is_ok())
}

/// Reads, is refused, reads again.
fn works(region: &Region, mapping: &Mapping) {
    mapping.write::<u32>(0, 7).expect("enabled");
    assert!(region.disable().expect("nobody is in the way"));
    assert_eq!(mapping.read::<u32>(0), Err(AccessError::Disabled { offset: 0 }));
    assert!(region.enable().expect("it comes back"));
    assert_eq!(mapping.read::<u32>(0), Ok(7));
}

#[test]
fn ten_thousand_mappings_of_one_region_are_revoked_together() {
    alone("ten_thousand_mappings_of_one_region_are_revoked_together", || {
        support::start();
        for strategy in strategies() {
            let region = Region::builder(64 << 10).strategy(strategy).build().expect("a region");
            let mappings: Vec<Mapping> = (0..10_000)
                .map(|i| region.map(MapOptions::new()).unwrap_or_else(|e| panic!("{strategy} {i}: {e}")))
                .collect();
            mappings[5000].write::<u64>(8, 9).expect("enabled");
            assert!(region.disable().expect("nobody is in the way"));
            for mapping in mappings.iter().step_by(97) {
                assert_eq!(mapping.read::<u64>(8), Err(AccessError::Disabled { offset: 8 }), "{strategy}");
            }
            assert!(region.enable().expect("it comes back"));
            for mapping in mappings.iter().step_by(97) {
                assert_eq!(mapping.read::<u64>(8), Ok(9), "{strategy}");
            }
            assert_eq!(region.stats().degraded, 0, "{strategy}");
        }
    })
    .well();
}

#[test]
fn a_thousand_regions_share_one_monitor() {
    alone("a_thousand_regions_share_one_monitor", || {
        support::start();
        let Some(strategy) = strategies().find(|strategy| *strategy == Strategy::Zap) else {
            support::skip("no userfaultfd with minor faults", false);
            return;
        };
        let monitor = Monitor::shared().expect("a userfaultfd");
        let build = || Region::builder(16 << 10).strategy(strategy).monitor(monitor.clone()).build();
        // A region of its own memory has a descriptor for it.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(4096).min(hard), hard).expect("up to the hard limit");
        let regions: Vec<(Region, Mapping)> = (0..1000)
            .map(|_| {
                let region = build().expect("a region");
                let mapping = region.map(MapOptions::new()).expect("a mapping");
                (region, mapping)
            })
            .collect();
        for (region, mapping) in &regions {
            mapping.write::<u32>(4096, 3).expect("enabled");
            region.disable().expect("nobody is in the way");
        }
        for (region, mapping) in &regions {
            assert!(mapping.read::<u32>(4096).is_err());
            region.enable().expect("it comes back");
            assert_eq!(mapping.read::<u32>(4096), Ok(3));
        }
        assert_eq!(monitor.stats().threads, 1);
    })
    .well();
}

#[test]
fn out_of_descriptors_is_an_error_that_says_so_and_leaves_nothing() {
    alone("out_of_descriptors_is_an_error_that_says_so_and_leaves_nothing", || {
        support::start();
        let region = Region::builder(64 << 10).build().expect("a region");
        let mapping = region.map(MapOptions::new()).expect("a mapping");
        // Once before counting: what Detach keeps aside stays a mapping of the file from then on.
        works(&region, &mapping);
        let before = Held::now();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("lower is always allowed");
        let refused = Region::builder(64 << 10).build().expect_err("no descriptor is left");
        assert!(refused.to_string().contains("RLIMIT_NOFILE"), "{refused}");
        // What there is goes on working: no change of state needs a descriptor.
        works(&region, &mapping);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("back");
        assert_eq!(Held::now(), before);
        Region::builder(64 << 10).build().expect("the next try works");
    })
    .well();
}

#[test]
fn out_of_address_space_is_an_error_that_says_so_and_leaves_nothing() {
    alone("out_of_address_space_is_an_error_that_says_so_and_leaves_nothing", || {
        support::start();
        for strategy in strategies() {
            let region = Region::builder(1 << 30).strategy(strategy).build().expect("a region");
            let before = Held::now();
            let (soft, hard) = getrlimit(Resource::RLIMIT_AS).expect("a limit");
            let used = read_text("/proc/self/statm");
            let pages: u64 = used.split_whitespace().next().and_then(|n| n.parse().ok()).expect("statm(5)");
            setrlimit(Resource::RLIMIT_AS, pages * 4096 + (512 << 20), hard).expect("lower is always allowed");
            let refused = region.map(MapOptions::new()).expect_err("no address space is left");
            assert!(refused.to_string().contains("RLIMIT_AS"), "{strategy}: {refused}");
            setrlimit(Resource::RLIMIT_AS, soft, hard).expect("back");
            assert_eq!(Held::now(), before, "{strategy}");
            let mapping = region.map(MapOptions::new()).expect("the next try works");
            works(&region, &mapping);
        }
    })
    .well();
}

#[test]
fn at_the_limit_of_mappings_revocation_still_revokes_and_mapping_says_why_not() {
    alone("at_the_limit_of_mappings_revocation_still_revokes_and_mapping_says_why_not", || {
        support::start();
        let limit: usize = read_text("/proc/sys/vm/max_map_count").trim().parse().unwrap_or(usize::MAX);
        require!(limit <= 1 << 17, "vm.max_map_count is too high to reach it here", could: false);
        for strategy in strategies() {
            for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes] {
                let region = Region::builder(8 << 20).strategy(strategy).build().expect("a region");
                let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("a mapping");
                let raw = region.map(MapOptions::new()).expect("a mapping");
                mapping.write::<u32>(0, 7).expect("enabled");
                let filler = raw::fill_the_table_of_mappings();
                let before = all_mappings();
                let refused = region.map(MapOptions::new()).expect_err("no mapping is left");
                assert!(refused.to_string().contains("max_map_count"), "{strategy}: {refused}");
                assert_eq!(all_mappings(), before, "{strategy}: nothing half-made");
                // Revoked in one way or another, or an error and everything as before; never half.
                let register = raw.register::<u32>(0).expect("in bounds");
                match region.disable() {
                    Ok(changed) => {
                        assert!(changed && !region.is_enabled());
                        assert!(register.read().is_err(), "{strategy} {policy:?}");
                        assert_ne!(mapping.read::<u32>(0), Ok(7), "{strategy} {policy:?}");
                    }
                    Err(e) => {
                        assert!(region.is_enabled(), "{strategy} {policy:?}: {e}");
                        assert_eq!(register.read(), Ok(7), "{strategy} {policy:?}: {e}");
                    }
                }
                drop(filler);
                let _ = region.disable().expect("with room it revokes");
                assert!(register.read().is_err(), "{strategy} {policy:?}");
                assert!(region.enable().expect("and gives back"));
                assert_eq!(register.read(), Ok(7), "{strategy} {policy:?}");
                assert_eq!(mapping.read::<u32>(0), Ok(7), "{strategy} {policy:?}");
            }
        }
    })
    .well();
}

//! Many mappings and regions, and the process's limits: reaching one is a clear error and leaves nothing half-made.

use crate::support;
use crate::support::child::{alone, alone_with};
use crate::support::count::{Held, all_mappings};
use crate::support::matrix::STRATEGIES;
use crate::support::{raw, read_text};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use revocable_mmio::{
    AccessError, AllOnesTooLarge, BuildError, Feature, MapOptions, Mapping, Missing, Monitor, Need, Needs, OnDisabled,
    Region, Strategy, Support, init,
};
use std::os::fd::AsRawFd;

fn strategies() -> impl Iterator<Item = Strategy> {
    STRATEGIES.into_iter().filter(|strategy| Region::builder(4096).strategy(*strategy).build().is_ok())
}

/// Reads, is refused while disabled, and reads again.
fn works(region: &Region, mapping: &Mapping) {
    mapping.write::<u32>(0, 7).expect("enabled");
    assert!(region.disable().expect("nothing is in the way"));
    assert_eq!(mapping.read::<u32>(0), Err(AccessError::Disabled { offset: 0 }));
    assert!(region.enable().expect("it comes back"));
    assert_eq!(mapping.read::<u32>(0), Ok(7));
}

#[test]
fn ten_thousand_mappings_of_one_region_are_revoked_together() {
    support::start();
    alone(|| {
        support::start();
        for strategy in strategies() {
            let region = Region::builder(64 << 10).strategy(strategy).build().expect("a region");
            let mappings: Vec<Mapping> = (0..10_000)
                .map(|i| region.map(MapOptions::new()).unwrap_or_else(|e| panic!("{strategy} {i}: {e}")))
                .collect();
            mappings[5000].write::<u64>(8, 9).expect("enabled");
            assert!(region.disable().expect("nothing is in the way"));
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
    support::start();
    alone(|| {
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
            region.disable().expect("nothing is in the way");
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
    support::start();
    alone(|| {
        support::start();
        let region = Region::builder(64 << 10).build().expect("a region");
        let mapping = region.map(MapOptions::new()).expect("a mapping");
        // Once before counting: the address that Detach moves page tables to stays a mapping of the file from then on.
        works(&region, &mapping);
        let before = Held::now();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("lower is always allowed");
        let refused = Region::builder(64 << 10).build().expect_err("no descriptor is left");
        assert!(refused.to_string().contains("RLIMIT_NOFILE"), "{refused}");
        // Existing regions go on working, because no change of state needs a descriptor.
        works(&region, &mapping);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("back");
        assert_eq!(Held::now(), before);
        Region::builder(64 << 10).build().expect("the next try works");
    })
    .well();
}

#[test]
fn out_of_address_space_is_an_error_that_says_so_and_leaves_nothing() {
    support::start();
    alone(|| {
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
    support::start();
    alone(|| {
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
                // Revoked in one way or another, or an error with everything as before; never half.
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

/// The best strategy that there is now, if nothing is in short supply.
fn best() -> Strategy {
    let support = Support::probe();
    let (detach, zap) = (support.has(Feature::DONTUNMAP), support.has(Feature::MINOR_SHMEM));
    if detach {
        Strategy::Detach
    } else if zap {
        Strategy::Zap
    } else {
        Strategy::Replace
    }
}

/// Builds the first region of the process in a shortage. It is refused for that reason, or is as good as any. A failure
/// in the shortage must not decide anything for the next region.
fn first_in_a_shortage(asked: Option<Strategy>, monitor: Option<Monitor>, over: impl FnOnce(), says: &str) {
    let build = || {
        let mut builder = Region::builder(64 << 10);
        if let Some(strategy) = asked {
            builder = builder.strategy(strategy);
        }
        if let Some(monitor) = &monitor {
            builder = builder.monitor(monitor.clone());
        }
        builder.build()
    };
    let first = build().map(|region| region.strategy());
    over();
    let wanted = asked.unwrap_or_else(best);
    match first {
        Ok(strategy) => assert_eq!(strategy, wanted, "a weaker one for a shortage that passes"),
        Err(e) => {
            let text = e.to_string();
            assert!(text.contains(says) && !text.contains("Linux 5."), "{text}");
            if let BuildError::Strategy { source, .. } = e {
                assert!(source.is_some_and(|e| [Errno::EMFILE, Errno::ENOMEM].contains(&e.errno)), "{source:?}");
            }
        }
    }
    let region = build().unwrap_or_else(|e| panic!("the shortage is over: {e}"));
    assert_eq!(region.strategy(), wanted);
    let mapping = region.map(MapOptions::new()).expect("it maps");
    works(&region, &mapping);
}

#[test]
fn a_first_region_without_descriptors_does_not_decide_for_the_later_ones() {
    support::start();
    for (free, strategy) in (0..6).flat_map(|free| ["", "monitor", "zap", "detach"].map(|strategy| (free, strategy))) {
        let vars = [("REVOCABLE_TEST_FREE", &*format!("{free}")), ("REVOCABLE_TEST_STRATEGY", strategy)];
        alone_with(&vars, || {
            support::start();
            let free: u64 = std::env::var("REVOCABLE_TEST_FREE").expect("set").parse().expect("a number");
            let how = std::env::var("REVOCABLE_TEST_STRATEGY").expect("set");
            let asked = match &*how {
                "zap" => Some(Strategy::Zap),
                "detach" => Some(Strategy::Detach),
                _ => None,
            };
            let possible = Support::probe();
            require!(possible.has(Feature::DONTUNMAP | Feature::MINOR_SHMEM), "an older kernel");
            let monitor = (how == "monitor").then(|| Monitor::with_threads(1).expect("a userfaultfd"));
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
            let next = std::fs::File::open("/dev/null").expect("a descriptor").as_raw_fd();
            let limit = u64::try_from(next).expect("a descriptor") + free;
            setrlimit(Resource::RLIMIT_NOFILE, limit, hard).expect("lower is always allowed");
            let raise = || setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("back");
            first_in_a_shortage(asked, monitor, raise, "RLIMIT_NOFILE");
        })
        .well();
    }
}

#[test]
fn a_first_region_at_the_limit_of_mappings_does_not_decide_for_the_later_ones() {
    support::start();
    alone(|| {
        support::start();
        let limit: usize = read_text("/proc/sys/vm/max_map_count").trim().parse().unwrap_or(usize::MAX);
        require!(limit <= 1 << 17, "vm.max_map_count is too high to reach it here", could: false);
        let filler = raw::fill_the_table_of_mappings();
        first_in_a_shortage(None, None, || drop(filler), "max_map_count");
    })
    .well();
}

#[test]
fn all_ones_memory_beyond_the_machines_is_refused_before_any_is_made() {
    alone(|| {
        support::start();
        // If it were not refused it would end here, and not with the machine's last page.
        setrlimit(Resource::RLIMIT_FSIZE, 8 << 20, 8 << 20).expect("less than before");
        for largest in [usize::MAX, usize::MAX / 2 + 2, 1 << 46] {
            let refused = init(Needs::new().all_ones(largest)).expect_err("no machine has so much");
            let [Missing { need: Need::AllOnes, source, .. }] = &refused.missing[..] else { panic!("{refused}") };
            let why: &AllOnesTooLarge = source.downcast_ref().unwrap_or_else(|| panic!("{source}"));
            assert!(why.largest == largest && why.needed > why.most, "{why}");
        }
        drop(init(Needs::new().all_ones(512 << 20)).expect("2 MiB"));
    })
    .well();
}

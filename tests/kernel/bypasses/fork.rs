//! Forked children see nothing of a region, and cannot change it.

use super::{SECRET, addr, with_secret};
use crate::support::forking;
use crate::support::matrix::{STRATEGIES, every_case};
use crate::support::raw::{self, Hit};
use crate::support::{self, child};
use nix::libc;
use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, RevokeError};

#[test]
fn a_forked_child_can_neither_change_the_parents_mappings_nor_its_own_memory_by_them() {
    support::start();
    every_case(|case| {
        let (region, mapping, base) = with_secret(case);
        let len = mapping.len();
        let mut parts = Some((region, mapping));
        for disabled in [false, true] {
            let (region, mapping) = parts.as_ref().expect("still there");
            if disabled {
                region.disable().expect("it revokes");
            }
            let code = forking::exit_code(|| {
                // The range is free in the child, which puts a mapping of its own there. (A cover of a disabled range
                // may be inherited, as it has no content.)
                let free = raw::map_if_free(base, len).is_ok() && raw::protect(base, len, libc::PROT_READ).is_ok();
                if !free && !disabled {
                    return 1;
                }
                for changed in [region.try_disable(), region.try_enable(), region.try_reset(|_| true)] {
                    if !matches!(changed, Err(RevokeError::Forked) | Ok(false)) {
                        return 2;
                    }
                }
                let own = raw::load64(base);
                if own == Ok(SECRET) || (free && own != Ok(0)) { 3 } else { 0 }
            });
            assert_eq!(code, 0, "{case} disabled: {disabled}");
            if disabled && case.policy == OnDisabled::Sigbus {
                assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{case}: the parent's mapping");
            }
            let _ = mapping.offset();
        }
        // Dropping in the child unmaps nothing of the child's.
        let taken = parts.take();
        if let Some((region, _)) = &taken {
            region.enable().expect("it comes back");
        }
        let code = forking::exit_code(|| {
            if raw::map_if_free(base, len).is_err() || raw::protect(base, len, libc::PROT_READ).is_err() {
                return 1;
            }
            let (region, mapping) = taken.as_ref().map_or((None, None), |(r, m)| (Some(r), Some(m)));
            // By bitwise copies, since the parent goes on using its own.
            for _ in [0] {
                if let (Some(region), Some(mapping)) = (region, mapping) {
                    raw::drop_copies(region, mapping);
                }
            }
            if raw::load64(base) == Ok(0) { 0 } else { 4 }
        });
        assert_eq!(code, 0, "{case}: drop");
        let (_region, mapping) = taken.expect("still there");
        assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}: the parent's mapping");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}: the parent's mapping");
    });
}

/// A process's regions share a monitor and a refusing userfaultfd, but not with its children.
#[test]
fn a_forked_child_makes_regions_of_its_own() {
    support::start();
    let ended = child::alone(|| {
        for strategy in STRATEGIES {
            let make = || {
                let region = Region::builder(64 << 10).strategy(strategy).build().ok()?;
                let mapping = region.map(MapOptions::new()).ok()?;
                let own = region.map(MapOptions::new().accessors_only()).ok()?;
                Some((region, mapping, own))
            };
            let works = |region: &Region, mapping: &Mapping, own: &Mapping, value: u64| {
                mapping.write(0, value).is_ok()
                    && own.read::<u64>(0) == Ok(value)
                    && region.disable().is_ok_and(|changed| changed)
                    && raw::load64(addr(mapping)) == Err(Hit::bus(addr(mapping)))
                    // Checks what is mapped, and not only what the accessors know.
                    && raw::load64(addr(own)).is_err()
                    && own.read::<u64>(0).is_err()
                    && region.enable().is_ok_and(|changed| changed)
                    && raw::load64(addr(mapping)) == Ok(value)
                    && own.read::<u64>(0) == Ok(value)
            };
            let Some((region, mapping, own)) = make() else { continue };
            assert!(works(&region, &mapping, &own, SECRET), "{strategy}: the parent's region");
            // The only other thread of this process is the test harness's. It waits, so no lock is held at the fork.
            let code = forking::exit_code(|| match make() {
                None => 1,
                Some((region, mapping, own)) => i32::from(!works(&region, &mapping, &own, 5)) * 2,
            });
            assert_eq!(code, 0, "{strategy}: the child's region");
            assert!(works(&region, &mapping, &own, SECRET), "{strategy}: the parent's region, after that");
        }
    });
    ended.well();
}

//! A hole in a mapping's range, which a failed call has left: to the kernel it is free address space, so what the crate
//! asks for next may be put there, and may not be given back.

#![expect(unsafe_code, reason = "unmaps what is the crate's, as foreign code may")]

use super::SECRET;
use crate::one_at_a_time;
use crate::support::matrix::{Memory, every_case_with};
use crate::support::{self, addr, child, raw};
use nix::errno::Errno;
use revocable_mmio::{MapOptions, OnDisabled, Region, Strategy, inject};

/// Aligned for huge pages, so that the kernel is asked for more address space than is kept.
const LEN: usize = 4 << 20;

#[test]
fn address_space_that_cannot_be_given_back_keeps_no_hole_from_being_mapped_again() {
    let _one = one_at_a_time();
    child::alone(|| {
        support::start();
        every_case_with(&[OnDisabled::Sigbus, OnDisabled::Block], |case| {
            // Detach has its page tables to move back, and asks for no address space.
            if case.strategy == Strategy::Detach || case.memory != Memory::Memfd {
                return;
            }
            for failing in [1, 2, 3, 1000] {
                let what = format!("{case}, munmap fails {failing} times");
                let region = Region::builder(LEN).strategy(case.strategy).build().expect("it builds");
                let mapping = region.map(MapOptions::new().on_disabled(case.policy)).expect("it maps");
                let other = Region::builder(LEN).strategy(case.strategy).build().expect("it builds");
                let below = other.map(MapOptions::new()).expect("it maps");
                mapping.write(0, SECRET).expect("enabled");
                region.disable().expect("it revokes");
                // The move fails with nothing left in the range, and so does reserving that.
                inject::fail("mremap(unmapped),mmap(MAP_FIXED_NOREPLACE)", 0, 1000, Errno::ENOMEM);
                region.enable().expect_err("the move fails");
                inject::clear();
                // Now the hole and what is below it are the highest place for so much address space.
                drop(below);
                inject::fail("munmap", 0, failing, Errno::ENOMEM);
                let tried = region.enable();
                inject::clear();
                let enabled = tried.or_else(|_| region.enable());
                enabled.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{what}");
                region.disable().unwrap_or_else(|e| panic!("{what}: the next disable: {e}"));
                region.enable().unwrap_or_else(|e| panic!("{what}: the next enable: {e}"));
                assert_eq!(raw::load64(addr(&mapping)), Ok(SECRET), "{what}");
            }
        });
    })
    .well();
}

#[test]
fn a_range_that_was_given_up_and_unmapped_by_other_code_is_not_unmapped_again_under_its_next_owner() {
    let _one = one_at_a_time();
    child::alone(|| {
        support::start();
        let region = Region::builder(64 << 10).strategy(Strategy::Replace).build().expect("it builds");
        let map = || region.map(MapOptions::new()).expect("it maps");
        // Whatever holes there are above are filled.
        let mut kept: Vec<_> = (0..200).map(|_| map()).collect();
        let mut again = 0;
        for _ in 0..50 {
            let mapping = map();
            let at = addr(&mapping);
            inject::fail("munmap", 0, 1000, Errno::ENOMEM);
            drop(mapping);
            inject::clear();
            // SAFETY: the mapping is gone: only the crate's own reservation stands here, which other code ends.
            unsafe { nix::libc::munmap(std::ptr::with_exposed_provenance_mut(at), 64 << 10) };
            // The next try fails as well.
            inject::fail("munmap", 0, 1000, Errno::ENOMEM);
            let next = map();
            inject::clear();
            again += usize::from(addr(&next) == at);
            next.write(0, SECRET).expect("enabled");
            // And the one after that must spare it.
            kept.push(map());
            assert_eq!(raw::load64(addr(&next)), Ok(SECRET), "unmapped under its owner");
            kept.push(next);
        }
        assert!(again > 0, "the kernel has never given the place out again");
    })
    .well();
}

//! A region in a file on a full tmpfs.

use super::{PAGE, addr, stamp};
use crate::support::matrix::{Case, Memory, POLICIES, STRATEGIES, file_in};
use crate::support::raw::{self, Hit};
use crate::support::{self, child, skip};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use revocable_mmio::fault::{FaultFlags, NoLock, Outcome};
use revocable_mmio::{AccessError, Backing, MapOptions, OnDisabled, PinError, Region, Strategy};
use std::path::{Path, PathBuf};

const PAGES: usize = 256;

/// A tmpfs over the directory for temporary files, which only this thread sees.
struct Small(PathBuf);

impl Small {
    fn mount() -> nix::Result<Self> {
        let here = Self(std::env::temp_dir());
        unshare(CloneFlags::CLONE_NEWNS)?;
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        mount(Some("tmpfs"), &here.0, Some("tmpfs"), MsFlags::empty(), Some("size=256k"))?;
        Ok(here)
    }

    fn dir(&self) -> &Path {
        &self.0
    }

    fn resize(&self, size: &str) {
        let nothing = None::<&str>;
        mount(nothing, &self.0, nothing, MsFlags::MS_REMOUNT, Some(size)).expect("it has less than that in it");
    }
}

#[test]
fn a_full_tmpfs_gives_errors_and_no_signal_and_room_on_it_mends_all() {
    support::start();
    if !support::is_root() {
        return skip("mounting is root's", false);
    }
    let ended = child::alone(|| {
        let small = match Small::mount() {
            Ok(small) => small,
            Err(e) => return skip(&format!("no tmpfs of our own: {e}"), false),
        };
        for strategy in STRATEGIES {
            for policy in POLICIES {
                let case = Case { strategy, policy, memory: Memory::ShmFile };
                for own in [false, true] {
                    if case.is_legal() {
                        let options = if own { case.options().accessors_only() } else { case.options() };
                        fill(&case, &small, options, own && strategy == Strategy::Zap);
                    }
                }
            }
        }
    });
    ended.well();
}

/// A page that the file does not give is left to the kernel; to cut it out of its mapping takes another mapping, and there is
/// none. It must not fault for ever then.
#[test]
fn a_full_tmpfs_at_the_limit_of_mappings_gives_errors_too() {
    support::start();
    if !support::is_root() {
        return skip("mounting is root's", false);
    }
    let ended = child::alone(|| {
        let limit: usize = support::read_text("/proc/sys/vm/max_map_count").trim().parse().unwrap_or(usize::MAX);
        require!(limit <= 1 << 17, "vm.max_map_count is too high to reach it here", could: false);
        let small = match Small::mount() {
            Ok(small) => small,
            Err(e) => return skip(&format!("no tmpfs of our own: {e}"), false),
        };
        for strategy in STRATEGIES {
            let case = Case { strategy, policy: OnDisabled::Sigbus, memory: Memory::ShmFile };
            if case.is_legal() {
                let fd = file_in(&small.dir().to_string_lossy(), PAGES * PAGE);
                let backing = Backing::File { fd, offset: 0, device: None };
                let region =
                    Region::builder(PAGES * PAGE).backing(backing).strategy(strategy).build().expect("it builds");
                let mapping = region.map(case.options()).expect("it maps");
                let base = addr(&mapping);
                let written = (0..PAGES).take_while(|page| mapping.write(page * PAGE, stamp(*page)).is_ok()).count();
                // Not the one that has just been tried, and a part of its mapping's middle.
                let hole = (written + 7) * PAGE;
                let filler = raw::fill_the_table_of_mappings();
                assert_eq!(raw::load64(base + hole), Err(Hit::bus(base + hole)), "{case}");
                assert_eq!(
                    mapping.read::<u64>(hole + 2 * PAGE),
                    Err(AccessError::NoMemory { offset: hole + 2 * PAGE })
                );
                assert_eq!(mapping.read::<u64>(0), Ok(stamp(0)), "{case}");
                drop(filler);
                for _ in 0..2 {
                    region.disable().expect("it revokes");
                    for at in [base, base + hole] {
                        assert_eq!(raw::load64(at), Err(Hit::bus(at)), "{case}: revoked like any other");
                    }
                    region.enable().expect("it comes back");
                    assert_eq!(raw::load64(base), Ok(stamp(0)), "{case}");
                }
            }
        }
    });
    ended.well();
}

fn fill(case: &Case, small: &Small, options: MapOptions, own: bool) {
    let backing = Backing::File { fd: file_in(&small.dir().to_string_lossy(), PAGES * PAGE), offset: 0, device: None };
    let region = Region::builder(PAGES * PAGE).backing(backing).strategy(case.strategy).build().expect("it builds");
    let mapping = region.map(options).expect("it maps");
    let base = addr(&mapping);
    let written = (0..PAGES).take_while(|page| mapping.write(page * PAGE, stamp(*page)).is_ok()).count();
    assert!((32..PAGES).contains(&written), "{case}: {written} pages on 256 KiB");
    let hole = written * PAGE;
    let none = AccessError::NoMemory { offset: hole };
    let full = || {
        assert_eq!(mapping.write(hole, 1_u64), Err(none), "{case}");
        assert_eq!(mapping.read::<u64>(hole), Err(none), "{case}");
        assert_eq!(mapping.try_read::<u64>(hole), Err(none), "{case}");
        assert_eq!(region.owner().write(hole, 1_u64), Err(none), "{case}");
        let copied = mapping.write_slice(hole - 8, &[0x11; 16]).expect_err("full");
        assert_eq!((copied.done, copied.error), (8, none), "{case}");
        mapping.write(hole - 8, 0_u64).expect("there is a page");
        assert_eq!(raw::load64(base + hole), Err(Hit::bus(base + hole)), "{case}");
        assert_eq!(raw::write_from(base + hole, 8), Err(Errno::EFAULT), "{case}");
        match region.pin(hole..hole + PAGE, FaultFlags::WRITE) {
            Err(PinError::NoMemory(_)) => {}
            other => panic!("{case}: {other:?}"),
        }
        assert_eq!(region.fault(hole, FaultFlags::WRITE, &mut NoLock::default()), Ok(Outcome::Sigbus), "{case}");
    };
    let all = |pages: usize, when: &str| {
        for page in 0..pages {
            assert_eq!(mapping.read::<u64>(page * PAGE), Ok(stamp(page)), "{case} {when}");
            if !own {
                assert_eq!(raw::load64(base + page * PAGE), Ok(stamp(page)), "{case} {when}");
            }
        }
    };
    let refused = |when: &str| {
        for at in [base, base + hole - PAGE, base + hole, base + (PAGES - 1) * PAGE] {
            match case.policy {
                OnDisabled::Sigbus => assert_eq!(raw::load64(at), Err(Hit::bus(at)), "{case} {when}"),
                // Accessors only: it refuses in place, and all-ones is what the accessors make of it.
                OnDisabled::AllOnes if !own => assert_eq!(raw::load64(at), Ok(u64::MAX), "{case} {when}"),
                _ => {}
            }
            let offset = at - base;
            match case.policy {
                OnDisabled::AllOnes => assert_eq!(mapping.read::<u64>(offset), Ok(u64::MAX), "{case} {when}"),
                OnDisabled::Block => {
                    assert_eq!(
                        mapping.try_read::<u64>(offset),
                        Err(AccessError::WouldBlock { offset }),
                        "{case} {when}"
                    );
                }
                _ => assert_eq!(mapping.read::<u64>(offset), Err(AccessError::Disabled { offset }), "{case} {when}"),
            }
        }
    };
    full();
    all(written, "full");
    for _ in 0..2 {
        region.disable().expect("it revokes");
        refused("full");
        region.enable().expect("it comes back");
        full();
        all(written, "full, given back");
    }

    small.resize("size=2m");
    for page in written..PAGES {
        mapping.write(page * PAGE, stamp(page)).unwrap_or_else(|e| panic!("{case}: there is room again: {e}"));
    }
    all(PAGES, "with room");
    // Also where the kernel was left to answer a fault.
    region.disable().expect("it revokes");
    refused("with room");
    region.enable().expect("it comes back");
    all(PAGES, "with room, given back");
    assert_eq!(region.stats().degraded, 0, "{case}");
    drop((mapping, region));
    small.resize("size=256k");
}

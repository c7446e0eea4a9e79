//! Bad input is an error that says what was wrong. It changes nothing, and nothing in the library panics.

use crate::support;
use crate::support::child;
use crate::support::count::Held;
use crate::support::matrix::{Memory, every_illegal_case, file_in};
use revocable_mmio::{
    AccessError, Backing, BuildError, Feature, MapError, MapOptions, Mapping, Monitor, MonitorError, OnDisabled, Prot,
    ProtectError, Region, Strategy, Support,
};

const PAGE: usize = 4096;
const LEN: usize = 4 * PAGE;

/// Runs `test` in a process where no other code opens or maps anything, and checks that the test leaves nothing behind.
fn leaves_nothing(test: impl Fn()) {
    support::start();
    let ended = child::alone(|| {
        let region = Region::builder(PAGE).build().expect("it builds");
        let _kept = region.map(MapOptions::new()).expect("it maps");
        let before = Held::now();
        test();
        assert_eq!(Held::now(), before, "something is left");
    });
    ended.well();
}

#[test]
fn regions_of_impossible_sizes_are_refused() {
    leaves_nothing(|| {
        assert!(matches!(Region::builder(0).build(), Err(BuildError::Empty { page: PAGE })));
        for len in [1, PAGE - 1, PAGE + 1, usize::MAX] {
            let built = Region::builder(len).build();
            assert!(matches!(built, Err(BuildError::Unaligned { what: "length", .. })), "{len:#x}: {built:?}");
        }
        for len in [usize::MAX & !(PAGE - 1), isize::MAX as usize & !(PAGE - 1), 1 << 62] {
            let built = Region::builder(len).build();
            assert!(matches!(built, Err(BuildError::TooLarge { .. } | BuildError::Sys(_))), "{len:#x}: {built:?}");
        }
        // More than an address space holds, less than the largest number.
        let built = Region::builder(1 << 56).build();
        assert!(matches!(built, Err(BuildError::Sys(_) | BuildError::TooLarge { .. })), "{built:?}");
        let huge = Region::builder(PAGE).backing(Backing::Huge2M).build();
        assert!(matches!(huge, Err(BuildError::Unaligned { page: 0x20_0000, .. })), "{huge:?}");
        assert!(matches!(Region::builder(PAGE).name("a\0b").build(), Err(BuildError::Name(_))));
        assert!(matches!(Monitor::with_threads(0), Err(MonitorError::NoThreads)));
    });
}

#[test]
fn files_that_do_not_fit_are_refused() {
    leaves_nothing(|| {
        let file = |offset| Backing::File { fd: file_in("/dev/shm", LEN), offset, device: None };
        let build = |len, offset| Region::builder(len).backing(file(offset)).build();
        assert!(matches!(build(LEN + PAGE, 0), Err(BuildError::FileTooShort { .. })));
        assert!(matches!(build(LEN, PAGE as u64), Err(BuildError::FileTooShort { .. })));
        assert!(matches!(build(PAGE, 1), Err(BuildError::Unaligned { what: "offset", value: 1, .. })));
        assert!(matches!(build(PAGE, !0xfff), Err(BuildError::TooLarge { .. })));
        assert!(matches!(
            build(PAGE, i64::MAX as u64 & !0xfff),
            Err(BuildError::TooLarge { .. } | BuildError::FileTooShort { .. })
        ));
        build(LEN, 0).expect("this one fits");
        // A pipe cannot be mapped.
        let (read, _write) = nix::unistd::pipe().expect("a pipe");
        let built = Region::builder(PAGE).backing(Backing::File { fd: read, offset: 0, device: None }).build();
        assert!(matches!(
            built,
            Err(BuildError::FileTooShort { .. } | BuildError::Strategy { .. } | BuildError::Sys(_))
        ));
    });
}

#[test]
fn parts_outside_of_the_region_are_refused() {
    leaves_nothing(|| {
        let region = Region::builder(LEN).build().expect("it builds");
        let map = |offset, len| region.map(MapOptions::new().offset(offset).len(len));
        assert!(matches!(map(0, 0), Err(MapError::Empty)));
        assert!(matches!(region.map(MapOptions::new().offset(LEN)), Err(MapError::Empty)));
        let edges = [0, 1, PAGE - 1, PAGE, LEN - PAGE, LEN, LEN + PAGE, usize::MAX & !(PAGE - 1), usize::MAX];
        for offset in edges {
            for len in edges {
                let fits = offset.checked_add(len).is_some_and(|end| end <= LEN) && len > 0;
                let aligned = offset % PAGE == 0 && len % PAGE == 0;
                match map(offset, len) {
                    Ok(mapping) => {
                        assert!(fits && aligned, "{offset:#x} {len:#x}");
                        assert_eq!((mapping.offset(), mapping.len()), (offset, len));
                    }
                    Err(MapError::Empty) => assert_eq!(len, 0, "{offset:#x}"),
                    Err(MapError::Unaligned { .. }) => assert!(!aligned, "{offset:#x} {len:#x}"),
                    Err(MapError::OutOfRange { region: LEN, .. }) => assert!(!fits, "{offset:#x} {len:#x}"),
                    Err(e) => panic!("{offset:#x} {len:#x}: {e}"),
                }
            }
        }
        assert_eq!(region.stats().mappings, 0);
    });
}

#[test]
fn accesses_outside_of_the_mapping_are_refused_in_every_state() {
    leaves_nothing(|| {
        let region = Region::builder(LEN).build().expect("it builds");
        let mapping = region.map(MapOptions::new().offset(PAGE).len(PAGE)).expect("it maps");
        let read_only = region.map(MapOptions::new().read_only()).expect("it maps");
        for enabled in [true, false] {
            if !enabled {
                region.disable().expect("it revokes");
            }
            for offset in [PAGE, PAGE + 8, LEN, usize::MAX - 7, usize::MAX & !7, isize::MAX as usize & !7] {
                let out = AccessError::OutOfBounds { offset, size: 8, len: PAGE };
                assert_eq!(mapping.read::<u64>(offset), Err(out));
                assert_eq!(mapping.write(offset, 1u64), Err(out));
                assert_eq!(mapping.try_read::<u64>(offset), Err(out));
                assert_eq!(mapping.try_write(offset, 1u64), Err(out));
                assert_eq!(mapping.compare_exchange(offset, 1u64, 2), Err(out));
                assert!(mapping.register::<u64>(offset).is_err());
                assert_eq!(mapping.read_slice(offset, &mut [0; 8]).expect_err("outside").done, 0);
                assert_eq!(mapping.write_slice(offset, &[0; 8]).expect_err("outside").done, 0);
                assert_eq!(mapping.fill(offset, 1, 8).expect_err("outside").done, 0);
                assert_eq!(mapping.fill(0, 1, offset.max(PAGE + 1)).expect_err("outside").done, 0);
            }
            for offset in [1, 2, 4, 6, PAGE - 4] {
                let crooked = AccessError::Misaligned { offset, align: 8 };
                let out = AccessError::OutOfBounds { offset, size: 8, len: PAGE };
                let expected = if offset + 8 > PAGE { out } else { crooked };
                assert_eq!(mapping.read::<u64>(offset), Err(expected));
                assert_eq!(mapping.write(offset, 1u64), Err(expected));
                assert_eq!(mapping.fetch_or(offset, 1u64), Err(expected));
            }
            let refused = AccessError::ReadOnly { offset: 8 };
            assert_eq!(read_only.write(8, 1u64), Err(refused));
            assert_eq!(read_only.try_write(8, 1u64), Err(refused));
            assert_eq!(read_only.fetch_and(8, 1u64), Err(refused));
            assert_eq!(read_only.fill(8, 1, 8).expect_err("read-only").error, refused);
            // An empty copy succeeds in any state.
            assert!(mapping.read_slice(PAGE, &mut []).is_ok());
            assert!(mapping.write_slice(0, &[]).is_ok());
        }
        let mut all = [0xffu8; LEN];
        region.owner().read_slice(0, &mut all).expect("the owner reads");
        assert!(all.iter().all(|byte| *byte == 0), "nothing was stored");
        assert!(region.owner().read::<u64>(LEN).is_err());
        assert!(region.owner().write(usize::MAX, 1u8).is_err());
        assert!(region.owner().fill(PAGE, 1, usize::MAX).is_err());
    });
}

#[test]
fn rights_for_parts_that_are_none_are_refused_in_every_state() {
    leaves_nothing(|| {
        let region = Region::builder(LEN).build().expect("it builds");
        let mapping = region.map(MapOptions::new().offset(PAGE)).expect("it maps");
        let read_only = region.map(MapOptions::new().read_only()).expect("it maps");
        let len = mapping.len();
        let edges = [0, 1, PAGE - 1, PAGE, PAGE + 1, len - PAGE, len - 1, len, len + 1, LEN, LEN + PAGE, usize::MAX];
        for enabled in [true, false] {
            if !enabled {
                region.disable().expect("it revokes");
            }
            for start in edges {
                for end in edges {
                    let fits = start < end && end <= len;
                    let expected = match [start, end].into_iter().find(|at| at % PAGE != 0) {
                        _ if !fits => Err(ProtectError::OutOfRange { start, end, len }),
                        Some(value) => Err(ProtectError::Unaligned { value, page: PAGE }),
                        None => Ok(()),
                    };
                    assert_eq!(mapping.protect(start..end, Prot::ReadWrite), expected, "{start:#x}..{end:#x}");
                    if let Err(e) = expected {
                        assert!([start, end].iter().any(|at| e.to_string().contains(&format!("{at:#x}"))), "{e}");
                        assert_eq!(mapping.protect(start..end, Prot::None), expected, "whatever the rights");
                    }
                }
            }
            assert_eq!(read_only.protect(0..PAGE, Prot::ReadWrite), Err(ProtectError::ReadOnly));
            assert_eq!(read_only.protect(0..PAGE, Prot::Read), Ok(()));
        }
        region.enable().expect("it comes back");
        for at in (0..len).step_by(PAGE) {
            assert_eq!(mapping.write(at, 1_u64), Ok(()), "a refused call changes nothing");
        }
    });
}

/// As many parts as there are pages, and then one part again.
#[test]
fn rights_of_single_pages_come_and_go() {
    leaves_nothing(|| {
        const PAGES: usize = 256;
        let region = Region::builder(PAGES * PAGE).build().expect("it builds");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        for round in 0..3 {
            for page in (round % 2..PAGES).step_by(2) {
                mapping.protect(page * PAGE..(page + 1) * PAGE, Prot::Read).expect("inside");
            }
            region.disable().expect("it revokes");
            region.enable().expect("it comes back");
            for page in 0..PAGES {
                let offset = page * PAGE;
                let refused = page % 2 == round % 2;
                let expected = if refused { Err(AccessError::Protected { offset }) } else { Ok(()) };
                assert_eq!(mapping.write(offset, 1_u64), expected, "page {page}");
            }
            mapping.protect(0..PAGES * PAGE, Prot::ReadWrite).expect("all of it");
        }
        region.disable().expect("it revokes");
        region.enable().expect("it comes back");
        assert_eq!(mapping.fill(0, 2, PAGES * PAGE), Ok(()));
    });
}

#[test]
fn combinations_that_cannot_work_are_refused_when_asked_for() {
    support::start();
    let _kept = Region::builder(PAGE).build().expect("it builds");
    every_illegal_case(|case| {
        let built = case.builder(1).build();
        match built {
            Err(BuildError::Strategy { strategy, why, .. }) => {
                assert_eq!(strategy, case.strategy, "{case}");
                assert!(!why.is_empty(), "{case}");
            }
            Ok(region) => {
                // The policy is refused instead of the strategy.
                let mapped = region.map(case.options());
                assert!(matches!(mapped, Err(MapError::Wait { .. })), "{case}: {mapped:?}");
                assert_eq!(case.policy, OnDisabled::Block, "{case}");
                assert_eq!(region.stats().mappings, 0, "{case}");
            }
            Err(e) => panic!("{case}: {e}"),
        }
        if case.memory == Memory::Device {
            assert_ne!(case.strategy, Strategy::Replace, "{case}: a device can always be replaced");
        }
    });
}

#[test]
fn what_is_built_without_asking_works_whatever_is_missing() {
    support::start();
    let support = Support::current();
    let region = Region::builder(LEN).build().expect("it builds on anything");
    let best = if support.has(Feature::DONTUNMAP) {
        Strategy::Detach
    } else if support.userfaultfd() && support.has(Feature::MINOR_SHMEM) {
        Strategy::Zap
    } else {
        Strategy::Replace
    };
    assert_eq!(region.strategy(), best, "{support}");
    let mapping: Mapping = region.map(MapOptions::new()).expect("it maps");
    mapping.write(0, 1u64).expect("enabled");
    assert!(region.disable().expect("it revokes"));
    assert!(mapping.read::<u64>(0).is_err());
    assert!(region.enable().expect("it comes back"));
    assert_eq!(mapping.read::<u64>(0), Ok(1));
    assert!(!format!("{region:?} {mapping:?} {support}").is_empty());
}

/// Errors are said once, name their subject, and say what to do.
#[test]
fn errors_say_what_to_do() {
    support::start();
    use revocable_mmio::fault::FaultFlags;
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    region.disable().expect("nothing is in the way");
    let guard = mapping.try_access().map(drop).expect_err("disabled");
    assert_eq!(guard, AccessError::Disabled { offset: AccessError::WHOLE });
    let text = guard.to_string();
    assert!(text.contains("guard") && !text.contains("0x"), "{text}");
    let text = mapping.read::<u64>(8).expect_err("disabled").to_string();
    assert!(text.contains("offset 0x8") && text.contains("enable()"), "{text}");
    let text = region.pin(0..1, FaultFlags::WAIT).map(drop).expect_err("disabled").to_string();
    assert!(text.contains("enable()"), "{text}");

    // No huge pages, or none of that size.
    if let Err(e) = Region::builder(1 << 40).backing(Backing::Huge1G).build() {
        let text = e.to_string();
        assert!(!text.contains("max_map_count"), "{text}");
    }
}

#[test]
fn limits_are_named_once_and_with_the_kernels_own_errno() {
    support::start();
    let ended = child::alone(|| {
        use nix::sys::resource::{Resource, setrlimit};
        use revocable_mmio::pci::{Bar, PciDevice};
        let _first = Region::builder(PAGE).build().expect("it builds");
        let (_, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_AS).expect("a limit");
        setrlimit(Resource::RLIMIT_AS, 1 << 30, hard).expect("it can be lowered");
        let text = Region::builder(1 << 34).build().expect_err("too large").to_string();
        setrlimit(Resource::RLIMIT_AS, hard, hard).expect("it can be raised");
        assert_eq!(text.matches("ENOMEM").count(), 1, "{text}");
        assert_eq!(text.to_lowercase().matches("memory").count(), 1, "{text}");
        assert!(text.contains("RLIMIT_AS"), "{text}");

        let (_, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).expect("it can be lowered");
        let built = PciDevice::builder(1, 2).bar(0, Bar::memory(4096)).build();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("it can be raised");
        let error = built.expect_err("out of descriptors");
        assert_eq!(error.errno(), nix::libc::EMFILE, "{error}");
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
    });
    ended.well();
}

#[test]
fn dma_segments_that_are_no_whole_pages_or_outside_are_refused() {
    use revocable_mmio::pci::{DmaAccess, DmaSegment, DmaSpace, Iommu};
    /// An IOMMU that records what is mapped. Nothing bad may reach it.
    #[derive(Default)]
    struct Remembers(std::sync::Mutex<Vec<(u64, usize)>>);
    impl Iommu for Remembers {
        fn map(&self, iova: u64, _: *mut u8, len: usize, _: DmaAccess) -> std::io::Result<()> {
            assert!(len > 0 && len % PAGE == 0 && iova.checked_add(len as u64 - 1).is_some(), "{iova:#x} {len:#x}");
            self.0.lock().expect("a list").push((iova, len));
            Ok(())
        }
        fn unmap(&self, iova: u64, len: usize) {
            self.0.lock().expect("a list").retain(|mapped| *mapped != (iova, len));
        }
    }
    support::start();
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let iommu = std::sync::Arc::new(Remembers::default());
    let space = DmaSpace::new(std::sync::Arc::clone(&iommu) as _);
    let part = |range| DmaSegment::device(&mapping, range);
    let map = |iova, segments: &[DmaSegment<'_>]| space.map(iova, segments, DmaAccess::Read).map_err(|e| e.errno());
    let edges = [0, 1, PAGE - 1, PAGE, PAGE + 1, LEN - PAGE, LEN, LEN + PAGE, usize::MAX & !(PAGE - 1), usize::MAX];
    for start in edges {
        for end in edges {
            let good = start < end && end <= LEN && start % PAGE == 0 && end % PAGE == 0;
            let mapped = map(1 << 32, &[part(start..end)]);
            assert_eq!(mapped, if good { Ok(()) } else { Err(14) }, "{start:#x}..{end:#x}");
            assert_eq!(space.unmap(1 << 32, LEN) > 0, good, "{start:#x}..{end:#x}");
            // A bad segment is refused beside a good one, too.
            let mapped = map(1 << 32, &[part(0..PAGE), part(start..end)]);
            assert_eq!(mapped, if good { Ok(()) } else { Err(14) }, "{start:#x}..{end:#x}");
            space.unmap(1 << 32, 2 * LEN);
            assert!(iommu.0.lock().expect("a list").is_empty());
        }
    }
    #[expect(unsafe_code, reason = "numbers, that nothing reaches")]
    // SAFETY: the IOMMU above only records addresses.
    let plain = |addr: usize, len| unsafe { DmaSegment::plain(std::ptr::without_provenance_mut(addr), len) };
    let half = (usize::MAX / 2 + 1) & !(PAGE - 1);
    assert_eq!(map(0, &[plain(PAGE, half), plain(PAGE, half)]), Err(22), "the sum of lengths");
    assert_eq!(map(0, &[plain(usize::MAX & !(PAGE - 1), 2 * PAGE)]), Err(14));
    assert_eq!(map(0, &[]), Err(22));
    assert_eq!(map(1, &[part(0..PAGE)]), Err(22));
    // The last page of I/O space, and a range that wraps around.
    let last = u64::MAX - PAGE as u64 + 1;
    assert_eq!(map(last, &[part(0..2 * PAGE)]), Err(22));
    assert_eq!(map(last, &[part(0..PAGE)]), Ok(()));
    assert_eq!(map(last, &[part(0..PAGE)]), Err(17), "taken");
    assert_eq!(map(last - PAGE as u64, &[part(0..2 * PAGE)]), Err(17), "taken");
    assert_eq!(map(last - PAGE as u64, &[part(0..PAGE)]), Ok(()));
    assert_eq!(space.unmap(last, PAGE), PAGE);
    assert_eq!(space.unmap(0, usize::MAX), PAGE);
}

#[cfg(feature = "vfio")]
#[test]
fn bars_of_impossible_sizes_are_refused() {
    use revocable_mmio::vfio::{RegionFlags, RegionInfo, VfioBar, VfioError};
    use std::os::fd::AsFd;
    leaves_nothing(|| {
        let device = file_in("/dev/shm", LEN);
        let all = RegionFlags::all();
        let page = PAGE as u64;
        let last = !(page - 1);
        let infos = [
            RegionInfo::new(0, u64::MAX, all),
            RegionInfo::new(0, last, all),
            RegionInfo::new(u64::MAX, page, all),
            RegionInfo::new(last, 2 * page, all).with_areas(std::iter::once(page..2 * page)),
            RegionInfo::new(0, u64::MAX, all).with_areas(std::iter::once(last - 1..u64::MAX)),
        ];
        for info in infos {
            let built = VfioBar::builder(info.clone()).build(device.as_fd());
            assert!(matches!(built, Err(VfioError::Build(_))), "{info:x?}: {built:?}");
        }
    });
}

//! Feature `vm-memory`: a mapping passes the claims of vm-memory's own tests, and a revoked one returns errors.

mod transfers;
mod virtio;

use crate::support;
use revocable_mmio::vm_memory::{AnyRegion, Recoverable, RegionError, RevocableRegion};
use revocable_mmio::{AccessError, CopyError, MapOptions, Mapping, OnDisabled, Region, RevokeError, Strategy};
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestRegionCollection,
    GuestRegionMmap, MemoryRegionAddress,
};

const LEN: usize = 0x4000;
const POLICIES: [OnDisabled; 3] = [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block];
const STRATEGIES: [Strategy; 4] = [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw];

fn region(strategy: Strategy) -> Region {
    Region::builder(LEN).strategy(strategy).build().expect("the strategy is there")
}

/// A region whose file no other process can cut off.
fn open_region(strategy: Strategy) -> Region {
    match strategy {
        Strategy::Withdraw => Region::builder(LEN).shared(OnDisabled::AllOnes).build().expect("the strategy is there"),
        _ => region(strategy),
    }
}

fn mapping(region: &Region) -> Arc<Mapping> {
    Arc::new(region.map(MapOptions::new()).expect("it maps"))
}

fn at(addr: u64) -> MemoryRegionAddress {
    MemoryRegionAddress(addr)
}

/// The refusal inside a vm-memory error.
fn refusal(error: GuestMemoryError) -> AccessError {
    let GuestMemoryError::IOError(io) = error else { panic!("not a refusal: {error:?}") };
    let source = io.into_inner().expect("a source");
    match source.downcast::<CopyError>() {
        Ok(copy) => copy.error,
        Err(source) => *source.downcast::<AccessError>().expect("one of the crate's errors"),
    }
}

/// Ordinary memory below a BAR, without a gap.
fn mixed(bar: &Region) -> GuestRegionCollection<AnyRegion<GuestRegionMmap<AtomicBitmap>>> {
    let ram = GuestRegionMmap::from_range(GuestAddress(0), LEN, None).expect("memory");
    let page = std::num::NonZeroUsize::new(4096).expect("not 0");
    let bar = RevocableRegion::with_bitmap(GuestAddress(LEN as u64), mapping(bar), AtomicBitmap::new(LEN, page));
    let regions = vec![AnyRegion::Ram(ram), AnyRegion::Revocable(bar.expect("low enough"))];
    GuestRegionCollection::from_regions(regions).expect("sorted, without overlap")
}

#[test]
fn bytes_written_are_read_back_and_partial_at_the_end() {
    support::start();
    for strategy in STRATEGIES {
        let bar = region(strategy);
        let mem = RevocableRegion::new(GuestAddress(0x1000), mapping(&bar)).expect("low enough");
        assert_eq!(mem.len(), LEN as u64);
        assert_eq!(mem.last_addr(), GuestAddress(0x1000 + LEN as u64 - 1));
        let end = LEN as u64;
        assert_eq!(mem.write(&[1, 2, 3, 4, 5], at(end - 3)).expect("a part"), 3);
        let mut buf = [0; 5];
        assert_eq!(mem.read(&mut buf, at(end - 3)).expect("a part"), 3);
        assert_eq!(buf, [1, 2, 3, 0, 0]);
        assert!(matches!(
            mem.write_slice(&[1, 2, 3, 4, 5], at(end - 3)),
            Err(GuestMemoryError::PartialBuffer { expected: 5, completed: 3 })
        ));
        assert!(matches!(mem.read_slice(&mut buf, at(end)), Err(GuestMemoryError::InvalidBackendAddress)));
        assert!(mem.write(&[], at(end)).is_ok_and(|n| n == 0), "nothing fits anywhere");
        mem.write_obj(0x1122_3344_5566_7788u64, at(0x11)).expect("any alignment");
        assert_eq!(mem.read_obj::<u64>(at(0x11)).expect("any alignment"), 0x1122_3344_5566_7788);
    }
}

#[test]
fn atomic_accesses_are_single_and_checked() {
    support::start();
    let bar = region(Strategy::Detach);
    let mem = RevocableRegion::new(GuestAddress(0), mapping(&bar)).expect("low enough");
    for order in [Ordering::Relaxed, Ordering::SeqCst] {
        mem.store(100u32, at(8), order).expect("aligned");
        assert_eq!(mem.load::<u32>(at(8), order).expect("aligned"), 100);
        mem.store(-2i64, at(16), order).expect("aligned");
        assert_eq!(mem.load::<i64>(at(16), order).expect("aligned"), -2);
        mem.store(7u8, at(3), order).expect("aligned");
        assert_eq!(mem.load::<u8>(at(3), order).expect("aligned"), 7);
    }
    mem.store(5u16, at(2), Ordering::Release).expect("stores release");
    assert_eq!(mem.load::<u16>(at(2), Ordering::Acquire).expect("loads acquire"), 5);
    assert!(mem.load::<u32>(at(0), Ordering::Release).is_err(), "loads don't release");
    assert!(mem.store(1u32, at(0), Ordering::AcqRel).is_err(), "stores don't acquire");
    assert!(mem.load::<u32>(at(LEN as u64 - 2), Ordering::Relaxed).is_err(), "half outside");
    assert!(mem.load::<u32>(at(LEN as u64), Ordering::Relaxed).is_err(), "outside");
    assert!(mem.store(1u32, at(2), Ordering::Relaxed).is_err(), "misaligned");
}

#[test]
fn a_revoked_region_answers_errors_and_loses_nothing() {
    support::start();
    for strategy in STRATEGIES {
        let bar = region(strategy);
        let mem = RevocableRegion::new(GuestAddress(0), mapping(&bar)).expect("low enough");
        mem.write_obj(7u32, at(64)).expect("enabled");
        bar.disable().expect("nothing is in the way");
        let disabled = |e: GuestMemoryError| assert!(matches!(refusal(e), AccessError::Disabled { .. }), "{strategy}");
        disabled(mem.read_obj::<u32>(at(64)).expect_err("revoked"));
        disabled(mem.write_obj(8u32, at(64)).expect_err("revoked"));
        disabled(mem.load::<u32>(at(64), Ordering::Relaxed).expect_err("revoked"));
        disabled(mem.store(8u32, at(64), Ordering::Relaxed).expect_err("revoked"));
        disabled(mem.read_exact_volatile_from(at(64), &mut &[1u8, 2, 3, 4][..], 4).expect_err("revoked"));
        let mut sink = [0; 4];
        disabled(mem.write_all_volatile_to(at(64), &mut &mut sink[..], 4).expect_err("revoked"));
        assert_eq!(sink, [0; 4], "nothing came out");
        bar.enable().expect("it comes back");
        assert_eq!(mem.read_obj::<u32>(at(64)).expect("enabled"), 7, "{strategy}: no refused store is in it");
    }
}

#[test]
fn files_are_read_into_and_written_from_a_region() {
    support::start();
    let bar = region(Strategy::Zap);
    let mem = RevocableRegion::new(GuestAddress(0), mapping(&bar)).expect("low enough");
    let content: Vec<u8> = (0..=255).cycle().take(3 * 4096 + 5).collect();
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(std::env::temp_dir().join(format!("revocable-vm-memory-{}", std::process::id())))
        .expect("a file");
    file.write_all(&content).expect("room");
    file.seek(SeekFrom::Start(0)).expect("a file");
    mem.read_exact_volatile_from(at(9), &mut file, content.len()).expect("there is as much");
    let mut back = vec![0; content.len()];
    mem.read_slice(&mut back, at(9)).expect("enabled");
    assert_eq!(back, content, "across the bounce buffer's edges");
    assert_eq!(mem.read_volatile_from(at(0), &mut file, 8).expect("the end"), 0, "the file has no more");
    assert!(mem.read_exact_volatile_from(at(0), &mut file, 8).is_err(), "the file has no more");

    let mut out = vec![0; content.len()];
    mem.write_all_volatile_to(at(9), &mut Cursor::new(&mut out[..]), content.len()).expect("room");
    assert_eq!(out, content);
    let mut small = [0; 4];
    assert_eq!(mem.write_volatile_to(at(9), &mut &mut small[..], 8).expect("a part"), 4);
    assert!(mem.write_all_volatile_to(at(LEN as u64 - 4), &mut Cursor::new(&mut out[..]), 8).is_err());
    let _ = std::fs::remove_file(std::env::temp_dir().join(format!("revocable-vm-memory-{}", std::process::id())));
}

#[test]
fn accesses_cross_from_memory_into_a_region_and_stop_where_it_refuses() {
    support::start();
    let bar = region(Strategy::Detach);
    let memory = mixed(&bar);
    let device = Recoverable(&memory);
    let edge = GuestAddress(LEN as u64 - 4);
    device.write_slice(&[1, 2, 3, 4, 5, 6, 7, 8], edge).expect("one after the other");
    assert_eq!(device.read_obj::<u64>(edge).expect("both"), u64::from_ne_bytes([1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!(bar.owner().read::<u32>(0), Ok(u32::from_ne_bytes([5, 6, 7, 8])));

    bar.disable().expect("nothing is in the way");
    assert!(matches!(refusal(device.read_obj::<u64>(edge).expect_err("half of it")), AccessError::Disabled { .. }));
    assert_eq!(device.read_obj::<u32>(edge).expect("memory is there"), u32::from_ne_bytes([1, 2, 3, 4]));
    bar.enable().expect("it comes back");

    let outside = device.read_obj::<u32>(GuestAddress(2 * LEN as u64)).expect_err("nothing there");
    assert!(matches!(outside, GuestMemoryError::InvalidGuestAddress(_)));
    let over = device.write(&[0; 16], GuestAddress(2 * LEN as u64 - 8)).expect("a part");
    assert_eq!(over, 8);
    let mut source = &content()[..];
    device.read_exact_volatile_from(GuestAddress(LEN as u64 - 100), &mut source, 200).expect("both");
    let mut back = [0; 200];
    device.read_slice(&mut back, GuestAddress(LEN as u64 - 100)).expect("both");
    assert_eq!(back[..], content()[..200]);
    device.store(3u32, GuestAddress(LEN as u64 + 8), Ordering::SeqCst).expect("aligned");
    assert_eq!(device.load::<u32>(GuestAddress(LEN as u64 + 8), Ordering::SeqCst).expect("aligned"), 3);
}

fn content() -> Vec<u8> {
    (0..=255).collect()
}

#[test]
fn what_is_written_is_marked_dirty_and_what_is_refused_is_not() {
    support::start();
    let bar = region(Strategy::Detach);
    let memory = mixed(&bar);
    let device = Recoverable(&memory);
    let (_, dirty) = (0, |at: usize| {
        let region = memory.find_region(GuestAddress(LEN as u64)).expect("the BAR");
        region.bitmap().dirty_at(at)
    });
    device.write_obj(1u8, GuestAddress(LEN as u64)).expect("enabled");
    assert!(dirty(0) && !dirty(4096));
    bar.disable().expect("nothing is in the way");
    device.write_obj(1u8, GuestAddress(LEN as u64 + 4096)).expect_err("revoked");
    device.store(1u8, GuestAddress(LEN as u64 + 4096), Ordering::Relaxed).expect_err("revoked");
    assert!(!dirty(4096));
    bar.enable().expect("it comes back");
    device.store(1u8, GuestAddress(LEN as u64 + 4096), Ordering::Relaxed).expect("enabled");
    assert!(dirty(4096) && !dirty(8192));
}

#[test]
fn a_slice_is_given_out_while_the_region_is_enabled_and_keeps_it_so() {
    support::start();
    for (strategy, policy) in STRATEGIES.into_iter().flat_map(|s| POLICIES.map(|p| (s, p))) {
        let bar = open_region(strategy);
        let mapping = Arc::new(bar.map(MapOptions::new().on_disabled(policy)).expect("it maps"));
        let mem = RevocableRegion::new(GuestAddress(0), mapping).expect("low enough");
        let slice = mem.get_slice(at(16), 8).expect("enabled");
        slice.write_obj(7u64, 0).expect("enabled");
        assert_eq!(bar.owner().read::<u64>(16), Ok(7), "{strategy} {policy:?}");
        assert!(mem.get_slice(at(LEN as u64 - 4), 8).is_err(), "beyond the end");

        let part = slice.subslice(4, 4).expect("inside");
        drop(slice);
        assert!(matches!(bar.disable(), Err(RevokeError::WouldDeadlock { guards: 1 })), "a part of it is a guard too");
        std::thread::scope(|scope| {
            let disabling = scope.spawn(|| bar.disable());
            std::thread::sleep(Duration::from_millis(10));
            assert!(!disabling.is_finished(), "{strategy} {policy:?}: it waits for the slice");
            assert_eq!(part.read_obj::<u32>(0).expect("never a signal"), 0);
            drop(part);
            assert!(disabling.join().expect("no panic").expect("nothing is in the way any more"));
        });
        let refused = mem.get_slice(at(16), 8).expect_err("disabled");
        assert!(matches!(refusal(refused), AccessError::Disabled { .. }), "{strategy} {policy:?}");
        assert!(mem.as_volatile_slice().is_err());
        bar.enable().expect("it comes back");
        assert_eq!(mem.get_slice(at(16), 8).expect("enabled").read_obj::<u64>(0).expect("enabled"), 7);
    }
}

#[test]
fn no_address_is_given_out_where_using_it_could_be_a_signal() {
    support::start();
    let denied = |region: &Region, options| {
        let mapping = Arc::new(region.map(options).expect("it maps"));
        let mem = RevocableRegion::new(GuestAddress(0), mapping).expect("low enough");
        matches!(mem.get_slice(at(0), 16), Err(GuestMemoryError::HostAddressNotAvailable))
            && matches!(mem.get_host_address(at(0)), Err(GuestMemoryError::HostAddressNotAvailable))
            && mem.as_volatile_slice().is_err()
            && mem.file_offset().is_none()
    };
    let bar = region(Strategy::Zap);
    assert!(denied(&bar, MapOptions::new().accessors_only()), "no thread resolves other code's faults");
    assert!(denied(&bar, MapOptions::new().on_disabled(OnDisabled::AllOnes).read_only()), "a slice can be stored to");
    let shared = Region::builder(LEN).shared(OnDisabled::Sigbus).build().expect("the strategy is there");
    assert!(denied(&shared, MapOptions::new()), "another process can cut the file off");

    // An address outlives any guard: only of a mapping whose accesses are never a signal.
    let host = |policy| {
        let mapping = Arc::new(bar.map(MapOptions::new().on_disabled(policy)).expect("it maps"));
        RevocableRegion::new(GuestAddress(0), mapping).expect("low enough").get_host_address(at(0)).is_ok()
    };
    assert_eq!(POLICIES.map(host), [false, true, false]);
}

#[test]
fn a_region_beyond_the_last_address_is_refused() {
    support::start();
    let bar = region(Strategy::Detach);
    let start = u64::MAX - 0x1000;
    let refused = RevocableRegion::new(GuestAddress(start), mapping(&bar)).expect_err("it does not fit");
    assert_eq!(refused, RegionError::TooHigh { start, len: LEN });
    let low = RevocableRegion::new(GuestAddress(0), mapping(&bar)).expect("low enough");
    assert_eq!(low.start_addr().raw_value(), 0);
}

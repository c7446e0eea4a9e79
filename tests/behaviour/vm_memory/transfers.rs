//! Transfers return what they return for vm-memory's own memory: short parts, packets, sources that have nothing now.

use super::{LEN, STRATEGIES, at, open_region};
use crate::support;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use revocable_mmio::vm_memory::{AnyRegion, Recoverable, RevocableRegion};
use revocable_mmio::{MapOptions, OnDisabled, Region, Strategy};
use std::fmt::Debug;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollection, GuestRegionMmap,
    MemoryRegionAddress, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile,
};

/// The end of a pair of sockets, and the other end.
fn sockets(kind: SockType, flags: SockFlag) -> (File, File) {
    let (here, there) = socketpair(AddressFamily::Unix, kind, None, flags).expect("sockets");
    (File::from(here), File::from(there))
}

/// A source that is interrupted now and then, gives a few bytes at a time, and then nothing.
struct Drips(Vec<std::io::Result<&'static [u8]>>);

impl ReadVolatile for Drips {
    fn read_volatile<B: BitmapSlice>(&mut self, buf: &mut VolatileSlice<B>) -> Result<usize, VolatileMemoryError> {
        match self.0.pop() {
            Some(Ok(bytes)) => Ok(buf.write(bytes, 0).unwrap_or(0)),
            Some(Err(e)) => Err(VolatileMemoryError::IOError(e)),
            None => Ok(0),
        }
    }
}

/// A sink that takes at most this many bytes.
struct Takes(usize, Vec<u8>);

impl WriteVolatile for Takes {
    fn write_volatile<B: BitmapSlice>(&mut self, buf: &VolatileSlice<B>) -> Result<usize, VolatileMemoryError> {
        let take = self.0.min(buf.len()).min(700);
        let mut bytes = vec![0; take];
        buf.read(&mut bytes, 0)?;
        self.0 -= take;
        self.1.extend(bytes);
        Ok(take)
    }
}

fn drips() -> Drips {
    let interrupted = || Err(std::io::ErrorKind::Interrupted.into());
    Drips(vec![Err(std::io::ErrorKind::WouldBlock.into()), Ok(b"de"), interrupted(), Ok(b"abc"), interrupted()])
}

/// What a call returned, comparable.
fn told<T: Debug, E: Debug>(result: Result<T, E>) -> String {
    // The whole error, with the kind and the text of an input or output error.
    format!("{result:?}")
}

/// Makes every kind of transfer, with sources and sinks of every kind, and writes down what was returned and what the
/// memory, the files and the sinks then have.
fn transfers<A: Copy + Debug, M: Bytes<A>>(memory: &M, address: impl Fn(u64) -> A) -> Vec<String>
where
    M::E: Debug,
{
    let mut log = Vec::new();
    let pattern: Vec<u8> = (0..=250).cycle().take(LEN).collect();
    memory.write_slice(&pattern, address(0)).expect("enabled");
    let end = LEN as u64;

    for count in [0, 1, 9000, LEN, LEN + 1, usize::MAX] {
        for from in [0, 5, end - 3, end, end + 1] {
            let mut source = &pattern[1..12_001];
            let read = told(memory.read_volatile_from(address(from), &mut source, count));
            let exact = told(memory.read_exact_volatile_from(address(from), &mut source, count));
            log.push(format!("{count} at {from:#x}: {read} {exact}, {} left", source.len()));
            for room in [0, 100, 1500, 20_000] {
                let (mut sink, mut all) = (Takes(room, Vec::new()), Takes(room, Vec::new()));
                let wrote = told(memory.write_volatile_to(address(from), &mut sink, count));
                let whole = told(memory.write_all_volatile_to(address(from), &mut all, count));
                log.push(format!("{count} from {from:#x} to {room}: {wrote} {whole} {:?} {:?}", sink.1.len(), all.1));
            }
        }
    }
    for count in [3, 4, 5, 6, 100] {
        let mut source = drips();
        log.push(format!("drips {count}: {}", told(memory.read_volatile_from(address(7), &mut source, count))));
        let mut source = drips();
        let exact = told(memory.read_exact_volatile_from(address(300), &mut source, count));
        log.push(format!("drips exactly {count}: {exact} {}", source.0.len()));
    }
    // A stream that has 100 bytes now, and then none.
    let (mut here, mut there) = sockets(SockType::Stream, SockFlag::SOCK_NONBLOCK);
    there.write_all(&[9; 100]).expect("room");
    log.push(format!("stream: {}", told(memory.read_volatile_from(address(0x1000), &mut here, 9000))));
    log.push(format!("stream, empty: {}", told(memory.read_volatile_from(address(0x1000), &mut here, 9000))));
    there.write_all(&[8; 50]).expect("room");
    log.push(format!("stream, exactly: {}", told(memory.read_exact_volatile_from(address(0x1800), &mut here, 60))));
    // Packets: one a call, whole, and cut where there is no room.
    let (mut here, mut there) = sockets(SockType::SeqPacket, SockFlag::SOCK_NONBLOCK);
    for len in [9000u16, 200, 9000] {
        there.write_all(&vec![7; len.into()]).expect("room");
    }
    for count in [12_000, 12_000, 4096, 12_000] {
        log.push(format!("packet {count}: {}", told(memory.read_volatile_from(address(0x10), &mut here, count))));
    }
    log.push(format!("sent: {}", told(memory.write_volatile_to(address(0), &mut here, 9001))));
    let mut packet = vec![0; LEN];
    log.push(format!("a packet of {:?}", there.read(&mut packet).expect("one")));
    log.push(format!("sent: {}", told(memory.write_all_volatile_to(address(1), &mut here, 10_001))));
    log.push(format!("a packet of {:?}", there.read(&mut packet).expect("one")));

    let mut content = vec![0; LEN];
    memory.read_slice(&mut content, address(0)).expect("enabled");
    log.push(format!("{content:?}"));
    log
}

fn same(ours: &[String], theirs: &[String], title: &str) {
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!(ours == theirs, "{title}:\n  here      {ours:.300}\n  vm-memory {theirs:.300}");
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn transfers_of_a_region_are_vm_memorys_to_the_letter() {
    support::start();
    let plain = GuestRegionMmap::<()>::from_range(GuestAddress(0), LEN, None).expect("memory");
    let theirs = transfers(&plain, MemoryRegionAddress);
    for strategy in STRATEGIES {
        let bar = open_region(strategy);
        let mapping = Arc::new(bar.map(MapOptions::new()).expect("it maps"));
        let ours = transfers(&RevocableRegion::new(GuestAddress(0), mapping).expect("low enough"), at);
        same(&ours, &theirs, &strategy.to_string());
    }
}

#[test]
fn transfers_by_guest_address_are_vm_memorys_to_the_letter() {
    support::start();
    let plain = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1_0000), LEN)]).expect("memory");
    let address = |offset| GuestAddress(0x1_0000 + offset);
    let theirs = transfers(&plain, address);
    let bar = open_region(Strategy::Detach);
    let region = || {
        let mapping = Arc::new(bar.map(MapOptions::new()).expect("it maps"));
        AnyRegion::<GuestRegionMmap>::Revocable(RevocableRegion::new(GuestAddress(0x1_0000), mapping).expect("low"))
    };
    let ours = GuestRegionCollection::from_regions(vec![region()]).expect("one");
    same(&transfers(&ours, address), &theirs, "by vm-memory");
    let recoverable = transfers(&Recoverable(&ours), address);
    same(&recoverable, &theirs, "by Recoverable");
}

/// A mapping that gives out no address.
fn accessors_only() -> (Region, RevocableRegion) {
    let bar = open_region(Strategy::Zap);
    let mapping = bar.map(MapOptions::new().accessors_only().on_disabled(OnDisabled::Sigbus)).expect("it maps");
    let region = RevocableRegion::new(GuestAddress(0), Arc::new(mapping)).expect("low enough");
    (bar, region)
}

#[test]
fn without_an_address_a_transfer_is_still_one_call_of_the_file() {
    support::start();
    let (bar, region) = accessors_only();
    assert!(region.get_slice(at(0), 1).is_err());
    let (mut here, mut there) = sockets(SockType::SeqPacket, SockFlag::SOCK_NONBLOCK);
    there.write_all(&[7; 9000]).expect("room");
    assert_eq!(region.read_volatile_from(at(8), &mut here, LEN).expect("a packet"), 9000);
    assert_eq!(bar.owner().read::<u8>(9007), Ok(7));
    assert_eq!(region.write_volatile_to(at(8), &mut here, 9000).expect("room"), 9000);
    assert_eq!(there.read(&mut vec![0; LEN]).expect("a packet"), 9000);
    assert_eq!(region.read_volatile_from(at(0), &mut drips(), 100).expect("a part"), 3);
    // A region that refuses leaves the packet where it is.
    bar.disable().expect("nothing is in the way");
    there.write_all(&[6; 30]).expect("room");
    region.read_volatile_from(at(8), &mut here, 100).expect_err("disabled");
    bar.enable().expect("it comes back");
    assert_eq!(region.read_volatile_from(at(8), &mut here, 100).expect("the packet"), 30);
}

#[test]
fn a_short_part_ends_a_transfer_over_several_regions() {
    support::start();
    let bar = open_region(Strategy::Detach);
    let ram = GuestRegionMmap::<()>::from_range(GuestAddress(0), LEN, None).expect("memory");
    let mapping = Arc::new(bar.map(MapOptions::new()).expect("it maps"));
    let bar = RevocableRegion::new(GuestAddress(LEN as u64), mapping).expect("low enough");
    let regions = vec![AnyRegion::Ram(ram), AnyRegion::Revocable(bar)];
    let memory = GuestRegionCollection::from_regions(regions).expect("sorted, without overlap");
    let (mut here, mut there) = sockets(SockType::Stream, SockFlag::SOCK_NONBLOCK);
    there.write_all(&[9; 100]).expect("room");
    let from = GuestAddress(LEN as u64 - 200);
    assert_eq!(Recoverable(&memory).read_volatile_from(from, &mut here, 400).expect("100 bytes, none lost"), 100);
    there.write_all(&[9; 300]).expect("room");
    assert_eq!(Recoverable(&memory).read_volatile_from(from, &mut here, 400).expect("across the edge"), 300);
}

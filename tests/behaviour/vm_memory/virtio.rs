//! virtio-queue's `Reader` and `Writer` over buffers in a BAR: they work while it is enabled, and are errors while not.

use super::{LEN, POLICIES, STRATEGIES, open_region};
use crate::support;
use revocable_mmio::vm_memory::{AnyRegion, RevocableRegion};
use revocable_mmio::{MapOptions, OnDisabled, Region, RevokeError, Strategy};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestRegionCollection, GuestRegionMmap};

type Memory = GuestRegionCollection<AnyRegion<GuestRegionMmap>>;

const BAR: u64 = 0x10_0000;
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const WRITE: u16 = 2;
const NEXT: u16 = 1;

/// The low half of an address.
fn low(address: u64) -> Option<u32> {
    Some(u32::try_from(address).expect("below 4 GiB"))
}

/// RAM with a queue, and a BAR with the buffers of its one request: 16 bytes to read, 32 to write.
fn machine(bar: &Region, policy: OnDisabled) -> (Memory, Queue) {
    let ram = GuestRegionMmap::from_range(GuestAddress(0), 0x4000, None).expect("memory");
    let mapping = Arc::new(bar.map(MapOptions::new().on_disabled(policy)).expect("it maps"));
    let bar = RevocableRegion::new(GuestAddress(BAR), mapping).expect("low enough");
    let memory = GuestRegionCollection::from_regions(vec![AnyRegion::Ram(ram), AnyRegion::Revocable(bar)]);
    let memory = memory.expect("sorted, without overlap");
    let descriptors = [Descriptor::new(BAR + 0x100, 16, NEXT, 1), Descriptor::new(BAR + 0x200, 32, WRITE, 0)];
    for (at, descriptor) in (TABLE..).step_by(16).zip(descriptors) {
        memory.write_obj(RawDescriptor::from(descriptor), GuestAddress(at)).expect("RAM");
    }
    // Flags, the index of the next entry, the first entry.
    memory.write_slice(&[0, 0, 1, 0, 0, 0], GuestAddress(AVAIL)).expect("RAM");
    let mut queue = Queue::new(16).expect("a power of two");
    queue.set_size(16);
    queue.set_desc_table_address(low(TABLE), Some(0));
    queue.set_avail_ring_address(low(AVAIL), Some(0));
    queue.set_used_ring_address(low(USED), Some(0));
    queue.set_ready(true);
    (memory, queue)
}

fn chain<'a>(memory: &'a Memory, queue: &mut Queue) -> DescriptorChain<&'a Memory> {
    let mut chains = queue.iter(memory).expect("the queue is ready");
    chains.next().expect("one request")
}

#[test]
fn a_device_serves_its_queue_from_an_enabled_bar_and_gets_errors_from_a_disabled_one() {
    support::start();
    for (strategy, policy) in STRATEGIES.into_iter().flat_map(|s| POLICIES.map(|p| (s, p))) {
        let title = format!("{strategy} {policy:?}");
        let bar = open_region(strategy);
        let (memory, mut queue) = machine(&bar, policy);
        bar.owner().write(0x100, 0x1122_3344_u32).expect("the owner's view");
        let request = chain(&memory, &mut queue);
        let mut reader = request.clone().reader(&memory).expect("enabled");
        assert_eq!(reader.read_obj::<u32>().expect("enabled"), 0x1122_3344, "{title}");
        assert_eq!(reader.available_bytes(), 12);
        let mut writer = request.clone().writer(&memory).expect("enabled");
        writer.write_all(&[7; 32]).expect("enabled");
        assert_eq!(bar.owner().read::<u8>(0x21f), Ok(7), "{title}");
        drop((reader, writer));

        assert!(bar.disable().expect("no reader is left"));
        assert!(request.clone().reader(&memory).is_err(), "{title}: no lie");
        assert!(request.clone().writer(&memory).is_err(), "{title}: no lie");
        bar.enable().expect("it comes back");
        let mut reader = request.reader(&memory).expect("enabled");
        assert_eq!(reader.read_obj::<u32>().expect("enabled"), 0x1122_3344, "{title}");
    }
}

#[test]
fn a_revocation_waits_for_a_reader_that_is_in_use() {
    support::start();
    let bar = open_region(Strategy::Detach);
    let (memory, mut queue) = machine(&bar, OnDisabled::Sigbus);
    let request = chain(&memory, &mut queue);
    let mut reader = request.reader(&memory).expect("enabled");
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| bar.disable_timeout(Duration::from_millis(10))).join().expect("no panic");
        assert!(matches!(refused, Err(RevokeError::TimedOut { .. })), "{refused:?}");
        let mut bytes = [1; 16];
        reader.read_exact(&mut bytes).expect("never a signal");
        assert_eq!(bytes, [0; 16]);
        drop(reader);
        assert!(scope.spawn(|| bar.disable()).join().expect("no panic").expect("nothing is in the way"));
    });
}

#[test]
fn a_queue_that_is_in_a_bar_itself_fails_while_that_is_disabled() {
    support::start();
    let bar = open_region(Strategy::Zap);
    let (memory, mut queue) = machine(&bar, OnDisabled::AllOnes);
    queue.set_used_ring_address(low(BAR + LEN as u64 / 2), Some(0));
    queue.add_used(&memory, 0, 32).expect("enabled");
    bar.disable().expect("nothing is in the way");
    queue.add_used(&memory, 0, 32).expect_err("the driver would not see it");
    bar.enable().expect("it comes back");
    queue.add_used(&memory, 0, 32).expect("enabled");
}

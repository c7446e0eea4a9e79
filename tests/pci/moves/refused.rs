//! Moves that cannot be made, and maps that misbehave.

use super::*;
use revocable_mmio::pci::PciError;

const EEXIST: i32 = 17;
const EDEADLK: i32 = 35;

#[test]
fn a_move_that_is_refused_says_so_and_gives_the_old_place_up() {
    let (device, guest, _following) = device();
    write(&device, BAR0, 0xe000_0000);
    write(&device, BAR2, 0xe800_0000);
    command(&device, 2);
    guest.told();
    *guest.taken.lock().expect("a list") = vec![0xd000_0000];

    // With memory on.
    let refused = device.write(Space::Config, BAR0, &0xd000_0000u32.to_le_bytes()[..]).expect_err("taken");
    assert!(matches!(&refused, PciError::Place { place, .. } if place.address == 0xd000_0000), "{refused}");
    assert_eq!(refused.errno(), EEXIST);
    assert_eq!(guest.told(), ["-Bar(0) 0xe0000000"]);
    assert_eq!((dword(&device, BAR0), device.place(Space::Bar(0))), (0xd000_0000, None), "as written, and nowhere");
    assert!(device.is_memory_enabled(), "mappings and calls are not concerned");

    // With a cycle of the memory bit: the other BAR has its place all the same.
    command(&device, 0);
    let refused = device.write(Space::Config, COMMAND, &[2, 0][..]).expect_err("still taken");
    assert!(matches!(refused, PciError::Place { .. }), "{refused}");
    assert_eq!((device.command(), device.is_memory_enabled()), (2, true));
    assert_eq!(guest.told(), ["-Bar(2) 0xe8000000", "+Bar(2) 0xe8000000"]);

    // Again, once it is free.
    device.retry_places().expect_err("still taken");
    guest.taken.lock().expect("a list").clear();
    device.retry_places().expect("free");
    assert_eq!(guest.told(), ["+Bar(0) 0xd0000000"]);
    device.retry_places().expect("nothing to do");
    assert_eq!(guest.told(), [""; 0]);
}

#[test]
fn a_place_is_in_every_map_or_in_none() {
    let (device, first, _following) = device();
    let second = Arc::new(Guest::default());
    *second.taken.lock().expect("a list") = vec![A];
    let second_following = device.follow(Arc::clone(&second) as _).expect("nothing is decoded");
    write(&device, BAR0, 0xe000_0000);
    device.write(Space::Config, COMMAND, &[2, 0][..]).expect_err("taken in one");
    assert_eq!(first.told(), ["+Bar(0) 0xe0000000", "-Bar(0) 0xe0000000"]);
    assert!(first.places.lock().expect("a list").is_empty());
    // A map that refuses a place cannot begin to follow.
    drop(second_following);
    device.retry_places().expect("free in the other");
    let third = device.follow(Arc::clone(&second) as _).expect_err("taken");
    assert_eq!(third.errno(), EEXIST);
    assert_eq!(second.told(), [""; 0]);
}

#[test]
fn a_map_that_panics_has_nothing_and_one_that_calls_back_is_refused() {
    #[derive(Default)]
    struct Wild(Mutex<Option<PciDevice>>, Mutex<Option<Following>>, Mutex<Vec<i32>>, AtomicU32);
    impl AddressMap for Wild {
        fn insert(&self, place: &BarPlace) -> io::Result<()> {
            if place.address == B {
                panic!("by design");
            }
            let device = self.0.lock().expect("a device").clone().expect("a device");
            let write = device.write(Space::Config, COMMAND, &[0, 0][..]).map_err(|e| e.errno());
            let errnos = [write.map(drop), device.retry_places().map_err(|e| e.errno())];
            self.2.lock().expect("a list").extend(errnos.map(|errno| errno.expect_err("from inside")));
            // It may stop following: then it is told nothing more.
            drop(self.1.lock().expect("its own").take());
            Ok(())
        }
        fn remove(&self, _: &BarPlace) {
            self.3.fetch_add(1, SeqCst);
        }
    }
    let (device, guest, _following) = device();
    let wild = Arc::new(Wild::default());
    let follow = || device.follow(Arc::clone(&wild) as _).expect("nothing is decoded");
    let following = follow();
    write(&device, BAR0, 0xe800_0000);
    let refused = device.write(Space::Config, COMMAND, &[2, 0][..]).expect_err("it panics");
    assert!(refused.to_string().contains("panicked"), "{refused}");
    assert_eq!(guest.told(), ["+Bar(0) 0xe8000000", "-Bar(0) 0xe8000000"]);
    assert_eq!(wild.3.load(SeqCst), 1, "what may be there is taken out");
    *wild.0.lock().expect("a device") = Some(device.clone());
    *wild.1.lock().expect("its own") = Some(following);
    write(&device, BAR0, 0xe000_0000);
    assert_eq!(*wild.2.lock().expect("a list"), [EDEADLK; 2]);
    assert_eq!(wild.3.load(SeqCst), 2, "what it inserted when it stopped following is removed");
    command(&device, 0);
    assert_eq!(
        (guest.told(), wild.3.load(SeqCst)),
        (vec!["+Bar(0) 0xe0000000".into(), "-Bar(0) 0xe0000000".into()], 2)
    );
    wild.0.lock().expect("a device").take();
}

/// A BAR that is not decoded is written without waiting for anything, even in the middle of a change that is about to
/// decode it.
#[test]
fn an_address_that_is_written_while_a_change_is_under_way_is_the_one_that_counts() {
    struct Writes(PciDevice, Arc<Guest>);
    impl AddressMap for Writes {
        fn insert(&self, place: &BarPlace) -> io::Result<()> {
            self.1.insert(place)
        }
        fn remove(&self, place: &BarPlace) {
            self.1.remove(place);
            write(&self.0, BAR0, 0xe800_0000);
        }
    }
    let (device, _, following) = device();
    drop(following);
    let guest = Arc::new(Guest::default());
    let writes = Arc::new(Writes(device.clone(), Arc::clone(&guest)));
    let following = device.follow(writes as _).expect("nothing is decoded");
    write(&device, BAR0, 0xe000_0000);
    write(&device, BAR4, 0xc000);
    command(&device, 1);
    guest.told();
    // The ports are left, and then memory is entered.
    command(&device, 2);
    assert_eq!(guest.told(), ["-Bar(4) 0xc000", "+Bar(0) 0xe8000000"]);
    command(&device, 0);
    drop(following);
}

#[test]
fn a_map_whose_destructor_panics_ends_like_any_other() {
    struct Bomb(Arc<AtomicU32>);
    impl AddressMap for Bomb {
        fn insert(&self, _: &BarPlace) -> io::Result<()> {
            self.0.fetch_add(1, SeqCst);
            Ok(())
        }
        fn remove(&self, _: &BarPlace) {
            self.0.fetch_sub(1, SeqCst);
            panic!("by design");
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("by design");
        }
    }
    support::start();
    for device_first in [false, true] {
        let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(SIZE).at(A)).build().expect("a device");
        let places = Arc::new(AtomicU32::new(0));
        let following = device.follow(Arc::new(Bomb(Arc::clone(&places)))).expect("free");
        assert_eq!(places.load(SeqCst), 1);
        if device_first {
            drop(device);
            assert_eq!(places.load(SeqCst), 0);
            drop(following);
        } else {
            drop(following);
            assert_eq!(places.load(SeqCst), 0);
            command(&device, 0);
        }
    }
}

//! The example `vfio_user`: a client maps the BAR, loses it in every way there is, and gets it back; and clients that lie.

#[path = "../../examples/vfio_user/connection.rs"]
mod connection;
#[path = "../../examples/vfio_user/device.rs"]
mod device;
#[path = "../../examples/vfio_user/dma.rs"]
mod dma;
#[path = "../../examples/vfio_user/irqs.rs"]
mod irqs;
#[path = "../../examples/vfio_user/message.rs"]
mod message;
#[path = "../../examples/vfio_user/server.rs"]
mod server;
#[path = "../../examples/vfio_user/session.rs"]
mod session;

mod client;
mod hostile;

use crate::support::{self, eventually};
use client::{Bar, Client, version, words};
use device::{TIMES, token};
use std::time::Duration;

const COMMAND: u64 = 4;
/// PMCSR, and device control of the PCI Express capability.
const POWER: u64 = 0x44;
const CONTROL: u64 = 0x58;
const ON: [u8; 2] = [2, 0];
const OFF: [u8; 2] = [0, 0];
const D3HOT: [u8; 2] = [3, 0];
const D0: [u8; 2] = [0, 0];
const FLR: [u8; 2] = [0, 0x80];
const ONES: u64 = u64::MAX;
const EIO: u32 = 5;

#[test]
fn a_client_loses_its_mapping_with_the_memory_bit_and_in_d3hot_and_gets_it_back() {
    support::start();
    let mut client = Client::new(None);
    let bar = client.bar();
    assert_eq!(bar.load(0), ONES, "memory is off at first");
    client.config(COMMAND, ON);
    for (round, (at, off, on)) in [(COMMAND, OFF, ON), (POWER, D3HOT, D0)].into_iter().enumerate() {
        let value = round as u64 + 1;
        bar.store(0x4000, value);
        client.config(at, off);
        assert_eq!(bar.load(0x4000), ONES);
        bar.store(0x4008, 77);
        assert_eq!(client.read(0, 0x4000, 8), Err(EIO), "calls are refused too");
        client.config(at, on);
        assert_eq!([bar.load(0x4000), bar.load(0x4008)], [value, 0], "what was stored before, and nothing else");
        assert_eq!(client.read(0, 0x4000, 8), Ok(value.to_ne_bytes().to_vec()));
    }
    assert_eq!(client.write(0, 0x4010, &9u64.to_ne_bytes()), 0);
    assert_eq!(bar.load(0x4010), 9, "a write by call");
    client.hang_up();
}

#[test]
fn a_reset_clears_the_memory_and_leaves_the_mapping() {
    support::start();
    let mut client = Client::new(None);
    let bar = client.bar();
    client.config(COMMAND, ON);
    let ways: [fn(&mut Client); 2] = [|client| client.config(CONTROL, FLR), |client| drop(client.good(13, &[]))];
    for reset in ways {
        bar.store(0x100, 1);
        let before = bar.load(TIMES);
        reset(&mut client);
        assert_eq!(bar.load(0x100), 0);
        assert_eq!(bar.load(TIMES), token(u32::from(before.to_ne_bytes()[0]) + 1), "the absence is counted");
    }
    client.config(COMMAND, OFF);
    client.good(13, &[]);
    assert_eq!(bar.load(0x100), ONES, "a reset does not turn memory on");
    client.hang_up();
}

#[test]
fn a_client_that_has_hung_up_sees_nothing_of_the_next() {
    support::start();
    let mut first = Client::new(None);
    let left = first.bar();
    first.config(COMMAND, ON);
    left.store(0, 1);
    first.hang_up();
    assert_eq!(left.load(0), ONES);
    left.store(8, 5);

    let mut second = Client::new(None);
    let bar = second.bar();
    second.config(COMMAND, ON);
    assert_eq!([bar.load(0), bar.load(8)], [0, 0]);
    bar.store(0, 2);
    assert_eq!([left.load(0), left.load(16)], [ONES, ONES]);
    second.hang_up();
}

#[test]
fn the_descriptor_comes_with_room_for_its_capability_only() {
    support::start();
    let mut client = Client::new(None);
    let short = client.region_info(32, 0);
    assert_eq!(short.payload[..16], words(&[64, 0b1111, 0, 32]));
    assert!(short.fd.is_none() && short.payload.len() == 32);
    let long = client.region_info(64, 0);
    assert_eq!(long.payload[32..], [words(&[0x10001, 0, 1, 0, 0, 0]), words(&[64 << 10, 0])].concat());
    assert!(long.fd.is_some());
    for index in 1..9 {
        let other = client.region_info(64, index);
        assert!(other.fd.is_none() && other.payload.len() == 32, "region {index}");
    }
    client.hang_up();

    let mut client = Client::stranger(None);
    client.good(1, &version(br#"{"capabilities":{"max_msg_fds":0}}"#));
    let info = client.region_info(64, 0);
    assert!(info.fd.is_none() && info.payload[4..8] == words(&[0b11]), "a client that takes no descriptors has calls");
    client.hang_up();
}

/// Is the token of one number there before and after `access`? Then the BAR was not away meanwhile.
fn while_there<R>(bar: &Bar, access: impl FnOnce() -> R) -> Option<R> {
    let before = bar.load(TIMES);
    let done = access();
    #[expect(clippy::cast_possible_truncation, reason = "its low half is the number")]
    let whole = token(before as u32) == before;
    (whole && bar.load(TIMES) == before).then_some(done)
}

#[test]
fn no_store_is_lost_while_the_server_takes_the_bar_away_by_itself() {
    support::start();
    let mut client = Client::new(Some(Duration::from_millis(1)));
    let bar = client.bar();
    client.config(COMMAND, ON);
    let (mut last, mut stores, mut checks, mut absences) = (None, 0u64, 0, 0);
    let mut next = 0;
    eventually("the BAR was away a hundred times", || {
        for _ in 0..1000 {
            if let Some(expected) = last {
                match while_there(&bar, || bar.load(0x2000)) {
                    Some(found) => {
                        assert_eq!(found, expected);
                        checks += 1;
                    }
                    None => absences += 1,
                }
            }
            next += 1;
            last = while_there(&bar, || bar.store(0x2000, next)).map(|()| next);
            stores += u64::from(last.is_some());
        }
        #[expect(clippy::cast_possible_truncation, reason = "its low half is the number")]
        let times = while_there(&bar, || bar.load(TIMES)).map_or(0, |token| token as u32);
        times > 100
    });
    assert!(stores > 100 && checks > 100 && absences > 0, "{stores} stores, {checks} checks, {absences} absences");
    client.hang_up();
}

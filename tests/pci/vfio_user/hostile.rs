//! Clients that lie. The server does not panic, is not made to allocate, and loses no descriptor: each of them gets an error
//! or is hung up on.

use super::client::{Client, message, raw_message, version, words};
use super::message::MOST_PAYLOAD;
use crate::support::{self, child, read_text};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::os::fd::AsRawFd;

const HUGE: u32 = u32::MAX;

/// Keeps the process from allocating what a client could ask for: 4 GiB at most, in one field of 32 bits.
fn limit_memory() {
    let status = read_text("/proc/self/status");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("the size of the process");
    let size: u64 = size.trim().trim_end_matches(" kB").parse().expect("a number");
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).expect("a limit");
    setrlimit(Resource::RLIMIT_AS, (size << 10) + (1 << 30), hard).expect("a lower limit");
}

#[test]
fn what_is_no_message_ends_the_connection() {
    support::start();
    child::alone(|| {
        limit_memory();
        let long = u32::try_from(16 + MOST_PAYLOAD + 1).expect("short");
        for (size, flags) in [(0, 0), (15, 0), (HUGE, 0), (1 << 31, 0), (long, 0), (16, 1), (16, 0xf)] {
            let mut client = Client::new(None);
            client.send(&raw_message(4, size, flags, &[0; 16]), &[]);
            assert!(client.answer().is_none(), "size {size:#x}, flags {flags:#x}");
            client.hang_up();
        }
        let whole = message(9, &[0; 16]);
        for cut in [1, 15, 16, 31] {
            let mut client = Client::new(None);
            client.send(&whole[..cut], &[]);
            client.hang_up();
        }
    })
    .well();
}

#[test]
fn a_version_that_is_none_is_refused() {
    support::start();
    let deep = version("[".repeat(60_000).as_bytes());
    let payloads: [&[u8]; 9] = [
        &[],
        &[0, 0],
        &[0, 0, 0],
        &[1, 0, 0, 0],
        b"\0\0\0\0{}",
        &version(b"{"),
        &version(b"\xff\xfe"),
        &version(br#"{"capabilities":{"max_msg_fds":"many"}}"#),
        &deep,
    ];
    for payload in payloads {
        let mut client = Client::stranger(None);
        let answer = client.ask(1, payload).expect("an error");
        assert_ne!(answer.errno, 0, "{payload:x?}");
        assert!(client.answer().is_none(), "hung up on");
        client.hang_up();
    }
    let mut client = Client::stranger(None);
    assert_ne!(client.ask(4, &words(&[16, 0, 0, 0])).expect("an error").errno, 0, "nothing comes before VERSION");
    client.hang_up();
    let mut client = Client::new(None);
    assert_ne!(client.ask(1, &version(b"{}")).expect("an error").errno, 0, "one VERSION");
    client.good(4, &words(&[16, 0, 0, 0]));
    client.hang_up();
}

#[test]
fn wrong_sizes_counts_and_commands_are_errors_and_the_connection_goes_on() {
    support::start();
    child::alone(|| {
        limit_memory();
        let mut client = Client::new(None);
        let transfer = |at: u64, region, count| [&at.to_ne_bytes()[..], &words(&[region, count])].concat();
        let range = |room, flags, at: u64, len: u64| {
            [&words(&[room, flags, 0, 0])[..], &at.to_ne_bytes(), &len.to_ne_bytes()].concat()
        };
        let wrong: Vec<(u16, Vec<u8>)> = vec![
            (0, vec![]),
            (6, words(&[16, 0, 0, 0])),
            (11, transfer(0, 0, 4)),
            (999, vec![]),
            (4, words(&[15, 0, 0, 0])),
            (5, words(&[31, 0, 0, 0, 0, 0, 0, 0])),
            (5, words(&[64, 0, 9, 0, 0, 0, 0, 0])),
            (7, words(&[16, 0, 5, 0])),
            (8, words(&[20, 0x24, 0, 0, HUGE])),
            (8, words(&[20, 0x24, 0, HUGE, 1])),
            (8, words(&[20, 0x3f, 0, 0, 1])),
            (8, words(&[20, 0x21, HUGE, 0, 0])),
            (9, transfer(0, 7, HUGE)),
            (9, transfer(0, 7, (64 << 10) + 1)),
            (9, transfer(u64::MAX, 7, 4)),
            (9, transfer(254, 7, 4)),
            (9, transfer(u64::MAX, 0, 4)),
            (9, transfer(0, 8, 4)),
            (9, transfer(0, HUGE, 4)),
            (10, [transfer(0, 7, 8), vec![0; 4]].concat()),
            (10, [transfer(0, 7, 4), vec![0; 8]].concat()),
            (10, [transfer(0, 6, 4), vec![0; 4]].concat()),
            (10, [transfer(u64::MAX, 7, 4), vec![0; 4]].concat()),
            (2, range(32, 3, u64::MAX, 2)),
            (2, range(32, 3, 0, 0)),
            (2, range(31, 3, 0, 1)),
            (2, range(32, HUGE, 0, 1)),
            (3, [words(&[24, 0]), vec![0; 16]].concat()),
            (13, vec![0]),
        ];
        for (command, payload) in wrong {
            let answer = client.ask(command, &payload).expect("the connection goes on");
            assert_ne!(answer.errno, 0, "{command} {payload:x?}");
        }
        // Every command with every length that is too short.
        for (command, len) in [(2, 32), (3, 24), (4, 4), (5, 32), (7, 16), (8, 20), (9, 16), (10, 16)] {
            for short in 0..len {
                assert_ne!(
                    client.ask(command, &vec![0; short]).expect("it goes on").errno,
                    0,
                    "{command}, {short} bytes"
                );
            }
        }
        let mut ranges = 0u64;
        while client.ask(2, &range(32, 3, ranges << 12, 4096)).expect("it goes on").errno == 0 {
            ranges += 1;
        }
        assert_eq!(ranges, 1024, "the table of ranges is bounded");
        assert_eq!(client.read(7, 0, 4), Ok(vec![0x34, 0x12, 0x5e, 0x7f]));
        client.hang_up();
    })
    .well();
}

#[test]
fn random_payloads_and_descriptors_by_the_hundred_are_survived() {
    support::start();
    child::alone(|| {
        limit_memory();
        let mut client = Client::new(None);
        let fds = || std::fs::read_dir("/proc/self/fd").expect("/proc").count();
        let before = fds();
        let file = std::fs::File::open("/dev/null").expect("a file");
        for count in [1, 8, 9, 253] {
            client.send(&message(8, &words(&[20, 0x24, 0, 0, 1])), &vec![file.as_raw_fd(); count]);
            assert_eq!(client.answer().expect("it goes on").errno != 0, count > 1, "{count} descriptors");
        }
        client.good(8, &words(&[20, 0x21, 0, 0, 0]));
        drop(file);
        assert_eq!(fds(), before, "none was kept");

        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..20_000 {
            let command = (2 + random() % 14).to_ne_bytes();
            let mut payload = vec![0; (random() % 80) as usize];
            payload.fill_with(|| if random() % 3 == 0 { random().to_ne_bytes()[0] } else { 0 });
            assert!(client.ask(u16::from(command[0]), &payload).is_some(), "it goes on");
        }
        assert_eq!(client.read(7, 0, 2), Ok(vec![0x34, 0x12]));
        client.hang_up();
    })
    .well();
}

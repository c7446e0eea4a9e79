//! A guardian: a small process that takes a shared region's memory away from its peers when the owner dies.
//!
//! The kernel keeps a file for as long as a process maps it, so an owner that dies while its region is enabled leaves
//! the memory to its peers. The guardian has the window's descriptor, and one end of a socket whose other end is the
//! owner's alone. That end closes with the owner, whatever it died of.
//!
//! `cargo run --example guardian` kills owners, with a guardian and without. A peer that may write can hold the file's
//! lock, and the guardian up with it (`Region::share`): the peer here may read only.
#![expect(unsafe_code, reason = "UNSAFETY: a peer loads from a mapping that only it knows")]

use memmap2::MmapOptions;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use revocable_mmio::{OnDisabled, Region, ShareAccess};
use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

type Failed = Box<dyn Error>;

const CONTENT: u64 = 0x0123_4567_89ab_cdef;
/// What peers get by the region's policy, whether there is a guardian, and what its peer gets at last.
const CASES: [(&str, &str, &str); 3] = [
    ("sigbus", "alone", "the content"),
    ("sigbus", "guarded", "SIGBUS"),
    ("all-ones", "guarded", "0xffffffffffffffff"),
];

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["guardian"] => Ok(guard()?),
        ["peer"] => peer(),
        ["owner", policy, guarded] => owner(policy, guarded == "guarded"),
        _ => CASES.into_iter().try_for_each(show),
    }
}

/// Waits for the end of the owner.
fn guard() -> io::Result<()> {
    let window = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut owner = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    // The owner sends nothing: this returns at the end of its end.
    let _ = owner.read(&mut [0]);
    empty(&window)
}

/// Takes the window's pages away from every process. An owner that has ended in order has done the same.
fn empty(window: &File) -> io::Result<()> {
    let seals = SealFlag::from_bits_truncate(fcntl(window, FcntlArg::F_GET_SEALS)?);
    if !seals.contains(SealFlag::F_SEAL_SHRINK) {
        return window.set_len(0);
    }
    // With the policy AllOnes the size is sealed. Until the ones are there the memory reads as zeroes.
    let len = window.metadata()?.len();
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(window, hole, 0, len.try_into().map_err(io::Error::other)?)?;
    let ones = [0xff; 4096];
    (0..len).step_by(ones.len()).try_for_each(|at| window.write_all_at(&ones, at))
}

/// An owner that never disables its region, and does not end by itself.
fn owner(policy: &str, guarded: bool) -> Result<(), Failed> {
    let policy = if policy == "all-ones" { OnDisabled::AllOnes } else { OnDisabled::Sigbus };
    let region = Region::builder(1 << 20).shared(policy).build()?;
    region.owner().write(0, CONTENT)?;
    let (line, its) = UnixStream::pair()?;
    if guarded {
        start("guardian", region.share(ShareAccess::ReadWrite)?, OwnedFd::from(its).into())?;
    }
    start("peer", region.share(ShareAccess::ReadOnly)?, Stdio::inherit())?;
    std::thread::sleep(Duration::from_secs(60));
    drop((region, line));
    Ok(())
}

/// This program again, in a group of its own: it gets no signal that is meant for the owner.
fn start(role: &str, window: OwnedFd, output: Stdio) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).stdin(window).stdout(output).process_group(0).spawn().map(drop)
}

/// Prints what it loads, until that is all-ones, or until its reader is gone.
fn peer() -> Result<(), Failed> {
    let map = MmapOptions::new().map_raw_read_only(&io::stdin())?;
    loop {
        // SAFETY: the first word of a mapping of at least a page. A signal, if the file has no page there any more, ends
        // the process.
        let value = unsafe { map.as_ptr().cast::<u64>().read_volatile() };
        if writeln!(io::stdout(), "{value:#x}").is_err() || value == u64::MAX {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills an owner whose region is enabled, and fails if its peer does not get what it should.
fn show((policy, guarded, expected): (&str, &str, &str)) -> Result<(), Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut owner = command.args(["owner", policy, guarded]).stdout(Stdio::piped()).spawn()?;
    let mut loads = BufReader::new(owner.stdout.take().ok_or("a pipe")?).lines().map_while(Result::ok);
    println!("{policy}, {guarded}: the peer loads {}", loads.next().ok_or("the peer did not start")?);
    owner.kill()?;
    owner.wait()?;
    // About a second's worth: all of the content, or what comes after it. Zeroes stand there until the ones do.
    let is_new = |load: &String| *load != format!("{CONTENT:#x}") && load != "0x0";
    let met = match loads.by_ref().take(200).find(is_new) {
        Some(load) => load,
        None if loads.next().is_some() => "the content".to_owned(),
        None => "SIGBUS".to_owned(),
    };
    println!("  once the owner was killed, it gets {met}");
    if met == expected { Ok(()) } else { Err(format!("{expected} was expected").into()) }
}

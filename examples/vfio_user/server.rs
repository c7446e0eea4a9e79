//! The server of one client after the other.
//!
//! Each client gets a device of its own, and loses its BAR for good when it hangs up: a client that keeps its mapping or its
//! descriptor sees all-ones, and never the memory of the next.

use super::connection::Connection;
use super::device::Device;
use super::session::Session;
use revocable_mmio::pci::PciError;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Serves a client until it hangs up, or sends what is no message. With `every`, takes the BAR away and gives it back by
/// itself meanwhile, one change each time.
///
/// # Errors
/// The device could not be made. A client's own faults are printed, and are no error.
pub(crate) fn serve(stream: UnixStream, every: Option<Duration>, say: &(dyn Fn(&str) + Sync)) -> Result<(), PciError> {
    let made = Device::make()?;
    let device = &made;
    say("a client has connected");
    let (ends, ended) = channel::<()>();
    let served = thread::scope(|scope| {
        if let Some(every) = every {
            scope.spawn(move || toggle(device, every, ended, say));
        }
        let served = commands(stream, device, say);
        drop(ends);
        served
    });
    drop(made);
    let how = served.map_or_else(|e| format!("was hung up on: {e}"), |()| "has hung up".to_owned());
    say(&format!("{how}; BAR 0 is taken away for good"));
    Ok(())
}

fn commands(stream: UnixStream, device: &Device, say: &(dyn Fn(&str) + Sync)) -> io::Result<()> {
    let mut connection = Connection::new(stream)?;
    let mut session = Session::new(device, say);
    while let Some(message) = connection.receive()? {
        let header = message.header;
        let outcome = session.handle(header.command, &message.payload, message.fds);
        if header.wants_reply() {
            connection.reply(&header, outcome)?;
        }
        if !session.is_agreed() {
            return Err(io::Error::other("no version was agreed on"));
        }
    }
    Ok(())
}

/// Takes the BAR away and gives it back, by runtime low power: the client's registers do not show it. A client can hold a
/// change up by holding the lock of the file that it has: the change is tried again.
fn toggle(device: &Device, every: Duration, ended: Receiver<()>, say: &(dyn Fn(&str) + Sync)) {
    let mut times = 0u64;
    while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
        let is_away = device.pci.is_low_power();
        let changed = if is_away { device.pci.exit_low_power() } else { device.pci.enter_low_power() };
        match (changed, is_away) {
            (Err(e), _) => say(&format!("BAR 0 stays as it is: {e}")),
            (Ok(()), false) => {
                device.count();
                say("BAR 0 is taken away");
            }
            (Ok(()), true) => {
                times += 1;
                say(&format!("BAR 0 is given back, {times} times so far"));
            }
        }
    }
}

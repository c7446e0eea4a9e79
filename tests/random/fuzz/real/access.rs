//! Accesses of every kind and width.

use super::super::model::Answer;
use super::super::op::{Call, Faulter, Modify, Via};
use crate::support::raw;
use revocable_mmio::fault::{CallerLock, NoLock, Outcome};
use revocable_mmio::{AccessError, AtomicPrimitive, Caller, CancelToken, Mapping};

pub(super) trait Word: AtomicPrimitive {
    fn cut(value: u64) -> Self;
    fn bytes(self) -> Vec<u8>;
    fn load(addr: usize) -> Result<Self, raw::Hit>;
    fn store(addr: usize, value: Self) -> Result<(), raw::Hit>;
}

macro_rules! words {
    ($($ty:ident $load:ident $store:ident;)*) => { $(
        impl Word for $ty {
            fn cut(value: u64) -> Self {
                let bytes = value.to_le_bytes();
                Self::from_le_bytes(std::array::from_fn(|i| bytes[i]))
            }

            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }

            fn load(addr: usize) -> Result<Self, raw::Hit> {
                raw::$load(addr)
            }

            fn store(addr: usize, value: Self) -> Result<(), raw::Hit> {
                raw::$store(addr, value)
            }
        }
    )* };
}

words! { u8 load8 store8; u16 load16 store16; u32 load32 store32; u64 load64 store64; }

fn hit(hit: raw::Hit, addr: usize) -> Answer {
    match hit {
        hit if hit == raw::Hit::bus(addr) => Answer::Bus,
        hit if hit.addr == addr => Answer::Signal,
        elsewhere => panic!("an access at {addr:#x} got {elsewhere:?}"),
    }
}

pub(super) fn load<T: Word>(mapping: &Mapping, via: Via, at: usize) -> Answer {
    let value: Result<T, AccessError> = match via {
        Via::Accessor => mapping.read(at),
        Via::Try => mapping.try_read(at),
        Via::Register => mapping.register::<T>(at).and_then(|register| register.read()),
        Via::With(flags) => mapping.read_with(at, flags),
        Via::Raw => {
            let addr = mapping.as_ptr().addr() + at;
            return T::load(addr).map_or_else(|e| hit(e, addr), |value| Answer::Bytes(value.bytes()));
        }
    };
    value.map_or_else(Answer::Refused, |value| Answer::Bytes(value.bytes()))
}

pub(super) fn store<T: Word>(mapping: &Mapping, via: Via, at: usize, value: u64) -> Answer {
    let value = T::cut(value);
    let stored = match via {
        Via::Accessor => mapping.write(at, value),
        Via::Try => mapping.try_write(at, value),
        Via::Register => mapping.register::<T>(at).and_then(|register| register.write(value)),
        Via::With(flags) => mapping.write_with(at, value, flags),
        Via::Raw => {
            let addr = mapping.as_ptr().addr() + at;
            return T::store(addr, value).map_or_else(|e| hit(e, addr), |()| Answer::Done);
        }
    };
    stored.map_or_else(Answer::Refused, |()| Answer::Done)
}

pub(super) fn modify<T: Word>(mapping: &Mapping, how: Modify, at: usize, value: u64) -> Answer {
    let value = T::cut(value);
    let found: Result<T, AccessError> = match how {
        Modify::Swap => mapping.swap(at, value),
        Modify::Add => mapping.fetch_add(at, value),
        Modify::Or => mapping.fetch_or(at, value),
        Modify::And => mapping.fetch_and(at, value),
        Modify::Xor => mapping.fetch_xor(at, value),
        Modify::Exchange(current) => match mapping.compare_exchange(at, T::cut(current), value) {
            Ok(Err(found)) => return Answer::Found(found.bytes()),
            Ok(Ok(old)) => Ok(old),
            Err(e) => Err(e),
        },
    };
    found.map_or_else(Answer::Refused, |found| Answer::Bytes(found.bytes()))
}

pub(super) fn call(call: Call, addr: usize, len: usize) -> Answer {
    let mut into = vec![0x5c; len];
    let done = match call {
        Call::Vm => raw::read_process(nix::unistd::getpid().as_raw(), addr, &mut into),
        Call::Write => raw::write_from(addr, len),
        Call::Read(byte) => raw::read_into(addr, &vec![byte; len]),
    };
    match done {
        Err(errno) => Answer::Errno(errno as i32),
        Ok(short) if short != len => panic!("{call:?} at {addr:#x} did {short} bytes of {len}"),
        Ok(_) if call == Call::Vm => Answer::Bytes(into),
        Ok(_) => Answer::Done,
    }
}

pub(super) fn fault(
    who: Faulter,
    once: impl FnOnce(Caller<'_>, &mut NoLock) -> Result<Outcome, revocable_mmio::FaultError>,
) -> Answer {
    let token = CancelToken::new();
    if who.cancelled {
        token.cancel();
    }
    let caller = Caller::new(who.flags).on_disabled(who.policy).cancel(&token);
    let mut lock = NoLock::default();
    let answer = once(caller, &mut lock);
    let keeps = !matches!(answer, Ok(Outcome::Killed));
    assert_eq!(lock.is_held(), keeps, "the caller's lock after {answer:?}");
    answer.map_or_else(Answer::NotFaulted, Answer::Fault)
}

//! Recorded histories that are linearizable, with one answer changed so that they surely are not.

use andante_chaos::linearizability::wgl::{Call, Specification};

use super::{
    archive,
    histories::{STEPS_MAX, is_linearizable},
    key_value, register,
};

/// Reads of one history that are changed in each way, spread over it.
const READS_CHANGED: usize = 3;

/// Up to [`READS_CHANGED`] of what there is, the first, the last and what is between.
fn spread<T: Copy>(all: &[T]) -> impl Iterator<Item = T> {
    let chosen = all.len().min(READS_CHANGED);
    (0..chosen).map(move |n| all[n * (all.len() - 1) / (chosen - 1).max(1)])
}

/// Whether `other` took effect before `call` for sure.
fn is_before<O>(other: &Call<O>, call: &Call<O>) -> bool {
    other.returned.is_some_and(|returned| returned < call.called)
}

/// The write whose effect a read must show: the latest before it, if no other write overlaps either of them.
fn shown_write<'a, O>(calls: &'a [Call<O>], read: &Call<O>, is_write: impl Fn(&O) -> bool) -> Option<&'a Call<O>> {
    let mut writes: Vec<&Call<O>> =
        calls.iter().filter(|call| is_write(&call.operation) && Some(call.called) < read.returned).collect();
    writes.sort_by_key(|call| call.returned.unwrap_or(u64::MAX));
    let (last, others) = writes.split_last()?;
    (is_before(last, read) && others.iter().all(|other| is_before(other, last))).then_some(*last)
}

/// Whether no write that `matches` began before the read was answered.
fn is_yet_to_come<O>(calls: &[Call<O>], read: &Call<O>, matches: impl Fn(&O) -> bool) -> bool {
    calls.iter().all(|call| !matches(&call.operation) || Some(call.called) > read.returned)
}

/// The history with another operation in one place.
fn with<O: Clone>(calls: &[Call<O>], at: usize, operation: O) -> Vec<Call<O>> {
    let mut calls = calls.to_vec();
    calls[at].operation = operation;
    calls
}

/// Counts what was changed in each way, and that it was found out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    never_written: usize,
    stale: usize,
    from_the_future: usize,
}

fn assert_found<S: Specification + Default>(
    changes: &[(usize, S::Operation)],
    calls: &[Call<S::Operation>],
    what: &str,
) -> usize
where
    S::Operation: Clone,
{
    for (at, operation) in spread(&(0..changes.len()).collect::<Vec<_>>()).map(|n| &changes[n]) {
        let changed = with(calls, *at, operation.clone());
        assert_eq!(is_linearizable::<S>(&changed, STEPS_MAX), Some(false), "{what}: {at}");
    }
    changes.len().min(READS_CHANGED)
}

#[test]
fn changed_etcd_histories_are_found_out() {
    use register::{Access, Register};
    let Some(files) = archive::files() else { return };
    let mut found = Found::default();
    let good = files["jepsen/expected.csv"].lines().filter_map(|line| line.strip_suffix(",true"));
    for log in good {
        let calls = register::parse(&files[&format!("jepsen/{log}")]);
        let reads: Vec<usize> = (0..calls.len()).filter(|at| matches!(calls[*at].operation, Access::Read(_))).collect();
        let is_write = |access: &Access| access.written().is_some();

        let never: Vec<_> = reads.iter().map(|at| (*at, Access::Read(Some(99)))).collect();
        found.never_written += assert_found::<Register>(&never, &calls, &format!("{log}, never written"));

        let stale = reads.iter().filter_map(|at| {
            let shown = shown_write(&calls, &calls[*at], is_write)?.operation.written();
            let older = calls.iter().filter(|call| is_before(call, &calls[*at])).map(|call| call.operation.written());
            Some((*at, Access::Read(older.flatten().map(Some).rfind(|value| *value != shown)?)))
        });
        found.stale += assert_found::<Register>(&stale.collect::<Vec<_>>(), &calls, &format!("{log}, stale"));

        let future = reads.iter().filter_map(|at| {
            let is_unwritten =
                |value: &u32| is_yet_to_come(&calls, &calls[*at], |access| access.written() == Some(*value));
            let later = calls.iter().filter_map(|call| call.operation.written()).find(is_unwritten)?;
            Some((*at, Access::Read(Some(later))))
        });
        found.from_the_future +=
            assert_found::<Register>(&future.collect::<Vec<_>>(), &calls, &format!("{log}, future"));
    }
    assert_eq!(found, Found { never_written: 69, stale: 50, from_the_future: 67 });
}

#[test]
fn changed_key_value_histories_are_found_out() {
    use key_value::{Access, Value};
    let Some(files) = archive::files() else { return };
    let mut found = Found::default();
    for (path, log) in files.iter().filter(|(path, _)| path.ends_with("-ok.txt")) {
        for (key, calls) in key_value::parse(log) {
            if is_linearizable::<Value>(&calls, STEPS_MAX / 10) != Some(true) {
                continue; // hard already as it is
            }
            let get = |(at, call): (usize, &Call<Access>)| match &call.operation {
                Access::Get(seen) => Some((at, seen.clone())),
                Access::Put(_) | Access::Append(_) => None,
            };
            let reads: Vec<(usize, String)> = calls.iter().enumerate().filter_map(get).collect();
            let is_write = |access: &Access| !matches!(access, Access::Get(_));

            let never: Vec<_> = reads.iter().map(|(at, seen)| (*at, Access::Get(format!("{seen}?")))).collect();
            found.never_written += assert_found::<Value>(&never, &calls, &format!("{path} {key}, never written"));

            let stale = reads.iter().filter_map(|(at, seen)| {
                let older = match &shown_write(&calls, &calls[*at], is_write)?.operation {
                    Access::Append(text) => seen.strip_suffix(text)?.to_owned(),
                    _ => String::new(),
                };
                Some((*at, Access::Get(older)))
            });
            let stale: Vec<_> = stale.collect();
            found.stale += assert_found::<Value>(&stale, &calls, &format!("{path} {key}, stale"));

            let future = reads.iter().filter_map(|(at, seen)| {
                let later = calls.iter().find(|call| {
                    is_write(&call.operation) && is_yet_to_come(&calls, &calls[*at], |access| *access == call.operation)
                })?;
                let (Access::Put(text) | Access::Append(text)) = &later.operation else { return None };
                Some((*at, Access::Get(format!("{seen}{text}"))))
            });
            let future: Vec<_> = future.collect();
            found.from_the_future += assert_found::<Value>(&future, &calls, &format!("{path} {key}, future"));
        }
    }
    assert_eq!(found, Found { never_written: 72, stale: 49, from_the_future: 68 });
}

//! Was anything acknowledged that could still have been lost? A function of a trace.

use std::collections::HashMap;

use crate::{
    http2::{DATA, END_STREAM, HEADERS, Splitter},
    syscalls::{Call, parse},
};

/// Files of the log; the entries of all groups stand there.
const LOG_SUFFIX: &str = ".raftlog";

/// What a trace says about the Reports of some tokens.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Reports whose answer was begun only after what they changed was on the disk.
    pub(crate) proven: usize,
    /// The others, each in words.
    pub(crate) broken: Vec<String>,
}

/// A stream of a connection: one call.
type Stream = (String, u32);

/// Holds that for each of `tokens` the node received a request with it, *then* wrote to its log, *then* began an
/// `fdatasync` of that file, which returned without an error *before* any byte of the answer was sent.
///
/// # Errors
/// The trace can't be read, or shows nothing of one of the tokens: it proves nothing then.
pub(crate) fn check(trace: &str, tokens: &[Vec<u8>]) -> Result<Verdict, String> {
    let calls = parse(trace)?;
    let requests = requests(&calls, tokens);
    let answers = answers(&calls);
    let log = |names: &'static [&str]| {
        let is_one = move |c: &&Call| names.contains(&c.name.as_str()) && c.file.ends_with(LOG_SUFFIX);
        calls.iter().filter(is_one).collect::<Vec<_>>()
    };
    let (writes, syncs) = (log(&["pwrite64", "write", "writev"]), log(&["fdatasync", "fsync"]));
    let mut verdict = Verdict::default();
    for (index, token) in tokens.iter().enumerate() {
        let (stream, request) = requests.get(token).ok_or(format!("Report {index} is not in the trace"))?;
        let answer = answers.get(stream).ok_or(format!("Report {index} has no answer in the trace"))?;
        let received = request.end.expect("what was read was returned");
        let covered = writes.iter().filter(|write| write.start > received).any(|write| {
            syncs.iter().any(|sync| {
                sync.file == write.file
                    && sync.returned == Some(0)
                    && write.end.is_some_and(|end| end < sync.start)
                    && sync.end.is_some_and(|end| end < answer.start)
            })
        });
        if covered {
            verdict.proven += 1;
        } else {
            verdict.broken.push(format!(
                "Report {index} (received in line {}, read begun {}) was answered in line {} ({}), before a log write \
                 and an fdatasync that began after it had returned",
                received + 1,
                request.time,
                answer.start + 1,
                answer.time,
            ));
        }
    }
    Ok(verdict)
}

/// The read that completed the request with each token.
fn requests<'a>(calls: &'a [Call], tokens: &[Vec<u8>]) -> HashMap<Vec<u8>, (Stream, &'a Call)> {
    let mut reads: Vec<&Call> =
        calls.iter().filter(|c| c.on_connection() && is_read(&c.name) && c.end.is_some()).collect();
    reads.sort_by_key(|call| call.end);
    let mut splitters: HashMap<&str, Splitter> = HashMap::new();
    let mut bodies: HashMap<Stream, Vec<u8>> = HashMap::new();
    let mut found = HashMap::new();
    for call in reads {
        for frame in splitters.entry(&call.file).or_default().push(&call.data) {
            let stream = (call.file.clone(), frame.stream);
            if frame.kind == DATA {
                bodies.entry(stream.clone()).or_default().extend(&frame.payload);
            }
            if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
                let body = bodies.remove(&stream).unwrap_or_default();
                for token in tokens.iter().filter(|t| body.windows(t.len()).any(|window| window == t.as_slice())) {
                    found.insert(token.clone(), (stream.clone(), call));
                }
            }
        }
    }
    found
}

/// The write that began the answer of each stream.
fn answers(calls: &[Call]) -> HashMap<Stream, &Call> {
    let mut connections: HashMap<&str, (Splitter, Vec<&Call>)> = HashMap::new();
    let mut found = HashMap::new();
    for call in calls.iter().filter(|call| call.on_connection() && is_write(&call.name)) {
        let (splitter, writes) = connections.entry(&call.file).or_default();
        writes.push(call);
        for frame in splitter.push(&call.data) {
            if matches!(frame.kind, DATA | HEADERS) {
                found.entry((call.file.clone(), frame.stream)).or_insert(writes[frame.begun]);
            }
        }
    }
    found
}

fn is_read(name: &str) -> bool {
    matches!(name, "read" | "readv" | "recvfrom" | "recvmsg")
}

fn is_write(name: &str) -> bool {
    matches!(name, "write" | "writev" | "sendto" | "sendmsg")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http2::{PREFACE, frame};

    const LOG: &str = r"9<\x2f\x31.raftlog>";
    const OTHER: &str = r"8<\x2f\x64\x62>";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
    }

    fn received(bytes: &[u8]) -> String {
        format!("1 07:00:00.1 recvfrom(5<TCP:[a->b]>, \"{}\", 8192, 0, NULL, NULL) = {}", hex(bytes), bytes.len())
    }

    fn request(stream: u32, token: &[u8]) -> String {
        let start = if stream == 1 { PREFACE } else { b"" };
        received(&[start, &frame(HEADERS, 4, stream, b"..."), &frame(DATA, 1, stream, token)].concat())
    }

    fn answer(stream: u32) -> String {
        let bytes = frame(HEADERS, 4, stream, b"200");
        format!("1 07:00:00.4 sendto(5<TCP:[a->b]>, \"{}\", 12, 0, NULL, 0) = {}", hex(&bytes), bytes.len())
    }

    fn write(file: &str) -> String {
        format!("2 07:00:00.2 pwrite64({file}, \"\\x00\"..., 100, 0) = 100")
    }

    fn sync(file: &str) -> String {
        format!("2 07:00:00.3 fdatasync({file}) = 0")
    }

    fn verdict(lines: &[String]) -> Verdict {
        check(&lines.join("\n"), &[b"token".to_vec()]).expect("the trace shows the Report")
    }

    #[test]
    fn an_answer_after_write_and_sync_is_proven() {
        let fine = verdict(&[request(1, b"a token!"), write(LOG), sync(LOG), answer(1)]);
        assert_eq!(fine, Verdict { proven: 1, broken: vec![] });
    }

    #[test]
    fn an_answer_without_a_sync_of_its_own_fails() {
        let ask = || request(1, b"a token!");
        let begun = || "2 07:00:00.3 fdatasync(9<\\x2f\\x31.raftlog> <unfinished ...>".to_owned();
        let ended = |result: &str| format!("2 07:00:00.5 <... fdatasync resumed>) = {result}");
        let cases: [(&str, Vec<String>); 8] = [
            ("no sync at all", vec![ask(), write(LOG), answer(1)]),
            ("nothing written", vec![ask(), sync(LOG), answer(1)]),
            ("sync of the batch before", vec![write(LOG), ask(), sync(LOG), answer(1)]),
            ("written after the sync", vec![ask(), sync(LOG), write(LOG), answer(1)]),
            ("synced before it was asked", vec![write(LOG), sync(LOG), ask(), answer(1)]),
            ("sync of another file", vec![ask(), write(LOG), sync(OTHER), answer(1)]),
            ("sync not over", vec![ask(), write(LOG), begun(), answer(1), ended("0")]),
            ("sync failed", vec![ask(), write(LOG), begun(), ended("-1 EIO (Input/output error)"), answer(1)]),
        ];
        for (what, lines) in cases {
            let verdict = verdict(&lines);
            assert_eq!((verdict.proven, verdict.broken.len()), (0, 1), "{what}");
            assert!(verdict.broken[0].starts_with("Report 0 (received in line "), "{what}: {}", verdict.broken[0]);
        }
    }

    #[test]
    fn concurrent_reports_are_told_apart_by_connection_and_stream() {
        let tokens = [b"first".to_vec(), b"other".to_vec()];
        let lines =
            [request(1, b"first"), write(LOG), request(3, b"other"), sync(LOG), answer(3), answer(1)].join("\n");
        let verdict = check(&lines, &tokens).expect("both are there");
        assert_eq!(verdict.proven, 1);
        assert!(verdict.broken[0].starts_with("Report 1 "), "{:?}", verdict.broken);
    }

    #[test]
    fn a_trace_that_does_not_show_a_report_proves_nothing() {
        let check = |lines: &[String]| check(&lines.join("\n"), &[b"token".to_vec()]);
        assert!(check(&[request(1, b"rubbish"), answer(1)]).unwrap_err().contains("not in the trace"));
        assert!(check(&[request(1, b"a token!"), write(LOG), sync(LOG)]).unwrap_err().contains("no answer"));
    }
}

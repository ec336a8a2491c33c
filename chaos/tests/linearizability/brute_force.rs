//! A checker that tries everything, for a handful of operations.

use andante_chaos::linearizability::{Action, Operation, Outcome, Refusal, Seen, State};

use super::book::Book;

/// No history here has as many campaigns.
const INCARNATION_MAX: u32 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    /// It was applied to this incarnation and is not answered yet.
    Applied(u32),
    Done,
}

/// Whether some order explains the history of one name.
pub(crate) fn is_linearizable(history: &[Operation]) -> bool {
    explains(&Book::default(), history, &vec![Progress::Waiting; history.len()])
}

fn explains(book: &Book, history: &[Operation], progress: &[Progress]) -> bool {
    let is_open = |index: usize| history[index].returned.is_some() && progress[index] != Progress::Done;
    if !(0..history.len()).any(is_open) {
        return true;
    }
    let end = (0..history.len()).filter(|index| is_open(*index)).filter_map(|index| history[index].returned).min();
    let may_go_on = |index: &usize| progress[*index] != Progress::Done && Some(history[*index].called) <= end;
    let goes_on = (0..history.len()).filter(may_go_on).any(|index| {
        ways(book, &history[index], progress[index]).into_iter().any(|(book, next)| {
            let mut progress = progress.to_vec();
            progress[index] = next;
            explains(&book, history, &progress)
        })
    });
    goes_on || {
        let mut gone = book.clone();
        gone.vanish();
        gone != *book && explains(&gone, history, progress)
    }
}

/// How an operation can go on.
fn ways(book: &Book, operation: &Operation, progress: Progress) -> Vec<(Book, Progress)> {
    if let Progress::Applied(incarnation) = progress {
        let there = book.campaign.filter(|seen| seen.version.incarnation == incarnation);
        let is_answer = match operation.outcome {
            Outcome::Shown(seen) => there == Some(seen),
            _ => there.is_none(),
        };
        return is_answer.then(|| (book.clone(), Progress::Done)).into_iter().collect();
    }
    let action = operation.action;
    if operation.outcome == Outcome::Refused(Refusal::Other) {
        return vec![(book.clone(), Progress::Done)];
    }
    let incarnations = match action {
        Action::Create { .. } => book.last_incarnation + 1..=INCARNATION_MAX,
        _ => 0..=0,
    };
    let way = |incarnation| {
        let mut next = book.clone();
        let answer = next.apply(action, incarnation);
        let progress = match (answer, operation.outcome) {
            (Outcome::Shown(_), Outcome::Unknown) if action != Action::Read => Progress::Done,
            (Outcome::Shown(Seen { version, state: State::Deleting, .. }), Outcome::Gone)
                if matches!(action, Action::Delete { .. }) =>
            {
                Progress::Applied(version.incarnation)
            }
            (Outcome::Shown(Seen { version, .. }), Outcome::Shown(_)) if operation.has_request_id => {
                Progress::Applied(version.incarnation)
            }
            (answer, outcome) if answer == outcome => Progress::Done,
            // The server makes it conditional by itself, and gives up after some tries.
            (answer, Outcome::Refused(Refusal::StaleEtag))
                if matches!(action, Action::Update { expected: None, .. })
                    && answer != Outcome::Refused(Refusal::NotFound) =>
            {
                return Some((book.clone(), Progress::Done));
            }
            _ => return None,
        };
        Some((next, progress))
    };
    incarnations.filter_map(way).collect()
}

//! Changing a setting of the directory that others may change too.

use std::sync::Arc;

use andante_cluster::{
    directory::Directory,
    host::{Host, SettingError},
};
use tokio::time::{Instant, timeout_at};

/// Others may change a setting at the same time; more often than this in a row they don't.
const TRIES: usize = 16;

/// Reads a setting, changes it, writes it; from the start if somebody else wrote meanwhile. Returns what `change` says
/// besides the new value, and the new revision, when this node's directory has the change, or at the deadline.
pub(crate) async fn change<T, E: From<SettingError>>(
    host: &Host,
    name: &str,
    deadline: Instant,
    change: impl Fn(&Directory) -> Result<(Vec<u8>, T), E>,
) -> Result<(T, u64), E> {
    let mut directory = host.directory();
    let mut tries = 0;
    loop {
        let (value, changed, revision) = {
            let directory = directory.borrow_and_update();
            let (value, changed) = change(&directory)?;
            (value, changed, directory.settings.get(name).map_or(0, |setting| setting.revision))
        };
        tries += 1;
        match host.put_setting(name, Some(value.into()), Some(revision), deadline).await {
            Ok(revision) => {
                catch_up(host, name, revision, deadline).await;
                return Ok((changed, revision));
            }
            // This node's directory is behind: wait for the change that got ahead.
            Err(error @ SettingError::Mismatch { .. }) => {
                if tries == TRIES || !matches!(timeout_at(deadline, directory.changed()).await, Ok(Ok(()))) {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until this node has what was just written, so that callers read their own writes here. Too late is no
/// failure: it is written, and will be known.
pub(crate) async fn catch_up(host: &Host, name: &str, revision: u64, deadline: Instant) {
    let known = |d: &Arc<Directory>| d.settings.get(name).is_some_and(|setting| setting.revision >= revision);
    let _late = timeout_at(deadline, host.directory().wait_for(known)).await.is_err();
}

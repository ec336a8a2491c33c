//! Page tokens: opaque to callers, and good only for the filter they were made with.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use xxhash_rust::xxh3::xxh3_64;

use super::error::ApiError;
use crate::{campaign::spec::is_name, v1};

/// Layout version, first byte of a token.
const VERSION: u8 = 1;
/// Version and filter hash.
const HEAD_BYTES: usize = 9;

/// The token for the page after the campaign `last`.
pub(crate) fn next(request: &v1::ListCampaignsRequest, last: &str) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend(filter_hash(request).to_le_bytes());
    bytes.extend(last.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The name after which the requested page begins; empty for the first page.
pub(crate) fn after(request: &v1::ListCampaignsRequest) -> Result<String, ApiError> {
    if request.page_token.is_empty() {
        return Ok(String::new());
    }
    let bad = |why: &str| ApiError::invalid("page_token", format!("{why}; start again without it"));
    let bytes = URL_SAFE_NO_PAD.decode(&request.page_token).map_err(|_| bad("is not from this server"))?;
    let (head, name) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(|| bad("is not from this server"))?;
    let name = std::str::from_utf8(name).ok().filter(|name| is_name(name));
    match (head, name) {
        ([VERSION, hash @ ..], Some(name)) if *hash == filter_hash(request).to_le_bytes() => Ok(name.to_owned()),
        ([VERSION, ..], Some(_)) => Err(bad("belongs to a list with another filter")),
        _ => Err(bad("is not from this server")),
    }
}

/// The page size is no part of it: it may change from page to page.
fn filter_hash(request: &v1::ListCampaignsRequest) -> u64 {
    let v1::ListCampaignsRequest { owner, label, state, .. } = request;
    xxh3_64(format!("{}:{owner}:{}:{label}:{state}", owner.len(), label.len()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(owner: &str, page_token: String) -> v1::ListCampaignsRequest {
        v1::ListCampaignsRequest { owner: owner.into(), page_token, ..Default::default() }
    }

    #[test]
    fn a_token_leads_to_the_next_page_of_its_own_list() {
        let token = next(&request("a", String::new()), "camp.1");
        assert_eq!(after(&request("a", token.clone())).unwrap(), "camp.1");
        assert!(matches!(after(&request("b", token)), Err(ApiError::Invalid(_))));
    }

    #[test]
    fn the_page_size_may_change_on_the_way() {
        let token = next(&v1::ListCampaignsRequest { page_size: 3, ..request("a", String::new()) }, "c");
        assert_eq!(after(&v1::ListCampaignsRequest { page_size: 9, ..request("a", token) }).unwrap(), "c");
    }

    #[test]
    fn what_is_no_token_is_refused_and_never_panics() {
        let good = next(&request("", String::new()), "camp");
        let mut cases = vec!["x".to_owned(), "!!".into(), "AAAAAAAAAAAAAAAA".into(), "ä".into(), "Zm9v".into()];
        cases.extend((0..good.len()).map(|cut| good[..cut].to_owned()).filter(|t| !t.is_empty() && t.len() < 13));
        for token in cases {
            assert!(matches!(after(&request("", token.clone())), Err(ApiError::Invalid(_))), "{token}");
        }
    }
}

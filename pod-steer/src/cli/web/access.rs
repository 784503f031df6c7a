//! Who may see the page: the one browser that has opened the printed address. Pure, but for the random numbers.
#![forbid(unsafe_code)]

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use axum::http::{HeaderMap, Uri, header};
use rustix::rand::{GetRandomFlags, getrandom};
use subtle::ConstantTimeEq as _;

/// Bytes of a secret.
const SECRET_BYTES: usize = 16;

/// A random text that cannot be guessed.
struct Secret(String);

impl Secret {
    fn new() -> io::Result<Self> {
        let mut bytes = [0; SECRET_BYTES];
        // Such a short request is answered completely.
        let count = getrandom(&mut bytes, GetRandomFlags::empty())?;
        if count != SECRET_BYTES {
            return Err(io::Error::other("the kernel gave too few random bytes"));
        }
        let mut text = String::new();
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Self(text))
    }

    /// Compares in a time that does not depend on the contents.
    fn is(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }
}

/// The secrets of a page, and the address that it is served at.
pub(super) struct Access {
    address: SocketAddr,
    token: Secret,
    spent: AtomicBool,
    /// Browsers send a cookie to every port of a host, and only to the path that it is for: this part of the path keeps it from servers of
    /// other users on this machine.
    path: Secret,
    session: Secret,
    form: Secret,
}

/// Why a request is refused, in one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It came by another name, as after DNS rebinding.
    Host,
    /// The token is wrong.
    Token,
    /// The token has been used.
    Spent,
    /// No session.
    Session,
    /// From a page of another site.
    Origin,
    /// A form without its secret.
    Form,
    /// An order without `--allow-orders`.
    ReadOnly,
}

impl Refusal {
    /// One line: why, and what to do.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Host => {
                "refused: open the page as http://127.0.0.1 or http://localhost, with the port that `pod-steer web` has printed"
            }
            Self::Token => "refused: the token is wrong; open the whole address that `pod-steer web` has printed",
            Self::Spent => {
                "refused: this address has been opened already, and it is valid once; use that page, or start `pod-steer web` again"
            }
            Self::Session => "refused: open the address that `pod-steer web` has printed",
            Self::Origin => "refused: the request came from another site; nothing was changed",
            Self::Form => "refused: the form is not of this page; reload the page, nothing was changed",
            Self::ReadOnly => {
                "refused: this page can only be read; nothing was changed (for orders: `pod-steer web --allow-orders`)"
            }
        }
    }
}

impl Access {
    /// New secrets, for a page at this address.
    pub(super) fn new(address: SocketAddr) -> io::Result<Self> {
        let (token, path, session, form) = (Secret::new()?, Secret::new()?, Secret::new()?, Secret::new()?);
        Ok(Self { address, token, spent: AtomicBool::new(false), path, session, form })
    }

    /// The address that can be opened once.
    pub(super) fn url(&self) -> String {
        format!("http://{}/?token={}", self.address, self.token.0)
    }

    /// The folder of the page, with a slash at both ends.
    pub(super) fn folder(&self) -> String {
        format!("/{}/", self.path.0)
    }

    /// The secret of forms.
    pub(super) fn form(&self) -> &str {
        &self.form.0
    }

    fn cookie_name(&self) -> String {
        format!("pod-steer-{}", self.address.port())
    }

    /// Takes the token, once; returns the cookie to set.
    pub(super) fn enter(&self, token: Option<&str>) -> Result<String, Refusal> {
        let Some(token) = token else { return Err(Refusal::Session) };
        if !self.token.is(token) {
            return Err(Refusal::Token);
        }
        if self.spent.swap(true, Ordering::SeqCst) {
            return Err(Refusal::Spent);
        }
        let (name, folder) = (self.cookie_name(), self.folder());
        Ok(format!("{name}={}; Path={folder}; HttpOnly; SameSite=Strict", self.session.0))
    }

    /// Checks that a request was meant for this server: a page of another site that has its name resolved to 127.0.0.1 has another host.
    pub(super) fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = one(headers, header::HOST).ok_or(Refusal::Host)?;
        // A request to a proxy names the host twice.
        if uri.authority().is_some() {
            return Err(Refusal::Host);
        }
        let port = self.address.port();
        let names = [
            self.address.to_string(),
            format!("127.0.0.1:{port}"),
            format!("localhost:{port}"),
            format!("[::1]:{port}"),
        ];
        // Browsers leave out the port of http.
        let bare = names.iter().filter_map(|name| name.strip_suffix(":80"));
        let is_ours = names.iter().map(String::as_str).chain(bare).any(|name| name.eq_ignore_ascii_case(host));
        if is_ours { Ok(()) } else { Err(Refusal::Host) }
    }

    /// Checks that the request has the cookie of the session.
    pub(super) fn check_session(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let name = self.cookie_name();
        if pairs.any(|(own, value)| own == name && self.session.is(value)) { Ok(()) } else { Err(Refusal::Session) }
    }

    /// Checks that a POST request was sent by this page. Every browser that knows `SameSite` sends the origin with it.
    pub(super) fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = one(headers, header::HOST).unwrap_or_default();
        match one(headers, header::ORIGIN) {
            Some(origin) if origin.eq_ignore_ascii_case(&format!("http://{host}")) => Ok(()),
            _ => Err(Refusal::Origin),
        }
    }

    /// Checks the secret of a form.
    pub(super) fn check_form(&self, secret: Option<&str>) -> Result<(), Refusal> {
        if secret.is_some_and(|secret| self.form.is(secret)) { Ok(()) } else { Err(Refusal::Form) }
    }
}

/// The value of a header that is there exactly once.
fn one(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn access(address: &str) -> Access {
        Access::new(address.parse().unwrap()).unwrap()
    }

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn the_token_is_valid_once() {
        let access = access("127.0.0.1:9000");
        let url = access.url();
        let token = url.strip_prefix("http://127.0.0.1:9000/?token=").unwrap();
        assert_eq!(token.len(), 2 * SECRET_BYTES);
        assert_eq!(access.enter(None), Err(Refusal::Session));
        assert_eq!(access.enter(Some("")), Err(Refusal::Token));
        assert_eq!(access.enter(Some(&token[1..])), Err(Refusal::Token));
        let cookie = access.enter(Some(token)).unwrap();
        assert!(cookie.starts_with("pod-steer-9000=") && cookie.ends_with("/; HttpOnly; SameSite=Strict"), "{cookie}");
        assert!(!cookie.contains(token), "the token is not the session");
        assert_eq!(access.enter(Some(token)), Err(Refusal::Spent));
        let pair = cookie.split(';').next().unwrap();
        assert_eq!(access.check_session(&headers(&[(header::COOKIE, &format!("a=b; {pair}"))])), Ok(()));
        for wrong in [format!("{pair}0"), "pod-steer-9000=".to_owned(), pair.replace("9000", "9001")] {
            assert_eq!(access.check_session(&headers(&[(header::COOKIE, &wrong)])), Err(Refusal::Session), "{wrong}");
        }
        assert_eq!(access.check_session(&HeaderMap::new()), Err(Refusal::Session));
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        let own = access("127.0.0.1:9000");
        let check = |access: &Access, uri: &str, host: &str| {
            access.check_host(&uri.parse().unwrap(), &headers(&[(header::HOST, host)]))
        };
        for host in ["127.0.0.1:9000", "localhost:9000", "LocalHost:9000", "[::1]:9000"] {
            assert_eq!(check(&own, "/", host), Ok(()), "{host}");
        }
        for host in
            ["127.0.0.1:9001", "127.0.0.1", "evil.example:9000", "localhost:9000.evil.example", "evil.example", ""]
        {
            assert_eq!(check(&own, "/", host), Err(Refusal::Host), "{host}");
        }
        assert_eq!(check(&own, "http://evil.example/", "127.0.0.1:9000"), Err(Refusal::Host));
        assert_eq!(own.check_host(&Uri::from_static("/"), &HeaderMap::new()), Err(Refusal::Host));
        assert_eq!(check(&access("127.0.0.1:80"), "/", "localhost"), Ok(()));
        assert_eq!(check(&access("[::1]:9000"), "/", "[::1]:9000"), Ok(()));
    }

    #[test]
    fn a_post_is_of_the_same_origin() {
        let access = access("127.0.0.1:9000");
        let of =
            |origin: &str| access.check_origin(&headers(&[(header::HOST, "localhost:9000"), (header::ORIGIN, origin)]));
        assert_eq!(of("http://localhost:9000"), Ok(()));
        for other in
            ["null", "http://localhost:9001", "https://localhost:9000", "http://127.0.0.1:9000", "http://evil.example"]
        {
            assert_eq!(of(other), Err(Refusal::Origin), "{other}");
        }
        assert_eq!(access.check_origin(&headers(&[(header::HOST, "localhost:9000")])), Err(Refusal::Origin));
        assert_eq!((access.check_form(None), access.check_form(Some("x"))), (Err(Refusal::Form), Err(Refusal::Form)));
        assert_eq!(access.check_form(Some(access.form())), Ok(()));
    }

    #[test]
    fn a_refusal_is_one_line() {
        let all = [
            Refusal::Host,
            Refusal::Token,
            Refusal::Spent,
            Refusal::Session,
            Refusal::Origin,
            Refusal::Form,
            Refusal::ReadOnly,
        ];
        assert!(all.iter().all(|refusal| refusal.text().lines().count() == 1 && refusal.text().len() < 160));
    }
}

// Requests to the daemon. The token stays in this tab (sessionStorage) and goes out as a header.

const TOKEN = "ffstream-token";
const TEACH_TOKEN = "ffstream-teach-token";

/** An answer that is an error, with the daemon's code and hint. */
export class ApiError extends Error {
  constructor(status, { code = `http_${status}`, message = "", hint = "" }) {
    super(message || `the daemon answered ${status}`);
    Object.assign(this, { status, code, hint: hint ?? "" });
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: value => sessionStorage.setItem(TOKEN, value),
};
export const teachToken = {
  get: () => sessionStorage.getItem(TEACH_TOKEN),
  set: value => sessionStorage.setItem(TEACH_TOKEN, value),
};

/** `fetch` with the token. Rejects with ApiError when the answer is an error, with TypeError when there is none. */
export async function request(path, { headers = {}, ...options } = {}) {
  const bearer = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  const answer = await fetch(path, { cache: "no-store", ...options, headers: { ...bearer, ...headers } });
  if (answer.ok) return answer;
  const text = await answer.text();
  let fields;
  try { fields = JSON.parse(text); } catch { fields = { message: text.trim() }; }
  throw new ApiError(answer.status, fields);
}

export const getJson = async path => (await request(path)).json();

/** POST of a JSON body. The own header cannot be sent by another site's page. */
export async function postJson(path, body, headers = {}) {
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-FFStream": "1", ...headers },
    body: JSON.stringify(body),
  };
  return (await request(path, options)).json();
}

/** What to show a person about an error: the message and what to do. */
export const explain = error => (error.hint ? `${error.message}: ${error.hint}` : error.message);

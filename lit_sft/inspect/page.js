const field = document.getElementById("search");
const count = document.getElementById("count");
const plain = (text) => text.replaceAll("⏎", "").replace(/[\s·]+/g, " ").toLowerCase();
const rows = [...document.querySelectorAll("article")].map((row) => [row, plain(row.textContent)]);
function search() {
  const wanted = plain(field.value.trim());
  let found = 0;
  for (const [row, text] of rows) {
    row.hidden = !text.includes(wanted);
    found += !row.hidden;
  }
  count.textContent = `${found} of ${rows.length} rows`;
}
field.addEventListener("input", search);
search();

// Says what lies under the pointer on a map. Without scripts the page lacks only this.
const tip = document.getElementById("tip");
for (const image of document.querySelectorAll(".map img")) {
  const data = JSON.parse(document.getElementById(image.dataset.values).textContent);
  image.addEventListener("mousemove", (event) => {
    const box = image.getBoundingClientRect();
    const pick = (offset, size, count) => Math.min(count - 1, Math.max(0, Math.floor((offset / size) * count)));
    const row = pick(event.clientY - box.top, box.height, data.blocks.length);
    const column = pick(event.clientX - box.left, box.width, data.largest[row].length);
    tip.textContent = `layer ${data.blocks[row]}, dimension ${data.dimension[row][column]}: ${data.largest[row][column]}` +
      (data.width > 1 ? ` (the largest of ${data.width})` : "");
    tip.style.display = "block";
    tip.style.left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 8) + "px";
  });
  image.addEventListener("mouseleave", () => { tip.style.display = "none"; });
}
